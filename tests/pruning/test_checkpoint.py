"""Weights from anywhere, and pruned networks that come back as they were."""

from __future__ import annotations

import argparse
import copy
import json
import os
import pickle
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning.checkpoint import hash_weights, load_pruned, load_weights, read_state_dict, save_pruned, save_weights
from pruning.errors import CheckpointError, PolicyError
from pruning.finding import find_groups
from pruning.models import build_model
from pruning.policy import ModelSpec, Policy
from pruning.ranking import NestedRanking
from pruning.surgery import Kept, prune

DATA = Path(os.environ.get("PRUNING_TEST_DATA", "/nonexistent"))
needs_data = [pytest.mark.data, pytest.mark.skipif(not DATA.is_dir(), reason="PRUNING_TEST_DATA is not set")]


def make_network(seed: int = 0, classes: int = 10) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_torch_saved(tmp_path, legacy):
    expected = weights(make_network())
    torch.save(expected, tmp_path / "net.anything", _use_new_zipfile_serialization=not legacy)
    assert_equal(read_state_dict(tmp_path / "net.anything"), expected)


@pytest.mark.parametrize("first", [0x280, 130])
def test_reads_safetensors_whatever_the_suffix(tmp_path, first):
    """Also one whose first byte, the length of its header, is that of a pickle."""
    path, expected = tmp_path / "net.pth", weights(make_network())
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    padding = (first - length) % 256 or 256
    header = content[8 : 8 + length] + b" " * padding
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert path.read_bytes()[0] == first % 256
    read = read_state_dict(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "ema"])
def test_finds_weights_that_lie_deeper_and_leaves_out_the_rest(tmp_path, key):
    expected = weights(make_network())
    optimizer = {"state": {0: torch.ones(3)}}
    torch.save({"epoch": 3, "best": torch.tensor(0.9), "optimizer": optimizer, key: expected}, tmp_path / "net.pt")
    assert_equal(read_state_dict(tmp_path / "net.pt"), expected)
    torch.save({"model": {"state_dict": expected | {"version": 2}}}, tmp_path / "net.pt")
    assert_equal(read_state_dict(tmp_path / "net.pt"), expected)


def test_plain_weights_come_before_averaged_ones(tmp_path):
    torch.save({"ema": {"w": torch.ones(1)}, "model": {"w": torch.zeros(1)}}, tmp_path / "net.pt")
    assert read_state_dict(tmp_path / "net.pt")["w"].item() == 0


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."])
def test_takes_off_prefixes_that_all_names_have(tmp_path, prefix):
    expected = weights(make_network())
    torch.save({prefix + name: tensor for name, tensor in expected.items()}, tmp_path / "net.pt")
    assert_equal(read_state_dict(tmp_path / "net.pt"), expected)


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "net.pt")
    assert list(read_state_dict(tmp_path / "net.pt")) == ["module.a", "b"]


class Payload:
    """An object whose unpickling writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("way", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, way, protocol):
    path, target = tmp_path / "net.pt", tmp_path / "written"
    content = {"state_dict": weights(make_network()), "extra": Payload(target)}
    if way == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(CheckpointError, match=r"net\.pt: (holds pickled code|damaged)") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)
    assert not target.exists()


def test_a_refusal_names_the_object_and_the_way_out(tmp_path):
    torch.save({"args": argparse.Namespace(lr=0.1), "w": torch.ones(1)}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"pickled code \(argparse\.Namespace\), refused; save a state_dict"):
        read_state_dict(tmp_path / "net.pt")
    torch.save(make_network(), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"pickled code \(torch\.nn\.modules\.container\.Sequential\)"):
        read_state_dict(tmp_path / "net.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(make_network()).save(tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="holds pickled code, refused"):
        read_state_dict(tmp_path / "net.pt")


def written(path: Path, kind: str) -> bytes:
    tensors = {"w": torch.arange(1000.0)}
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
def test_a_file_that_was_cut_short_is_an_error(tmp_path, kind, share):
    path = tmp_path / "net.pt"
    content = written(path, kind)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"checkpoint .*net\.pt: damaged") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello world", b"version https://git-lfs", b"PK\x03\x04 no zip", bytes(99)])
def test_what_is_no_checkpoint_is_an_error(tmp_path, content):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net\.pt: damaged"):
        read_state_dict(tmp_path / "net.pt")


def test_what_holds_no_weights_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_state_dict(tmp_path)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="expected a state_dict, got list"):
        read_state_dict(tmp_path / "list.pt")
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "numbers.pt")
    with pytest.raises(CheckpointError, match="got one without tensors"):
        read_state_dict(tmp_path / "numbers.pt")


# ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_loaded_weights_are_the_saved_ones(tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in make_network(1).state_dict().items()}}, tmp_path / "a.pt")
    model = make_network(2)
    load_weights(model, tmp_path / "a.pt")
    assert_equal(weights(model), weights(make_network(1)))


@pytest.mark.parametrize("wrapped_file", [True, False])
@pytest.mark.parametrize("wrapped_network", [True, False])
def test_network_and_file_may_each_be_wrapped(tmp_path, wrapped_file, wrapped_network):
    source, target = make_network(1), make_network(2)
    torch.save((nn.DataParallel(source) if wrapped_file else source).state_dict(), tmp_path / "net.pt")
    load_weights(nn.DataParallel(target) if wrapped_network else target, tmp_path / "net.pt")
    assert_equal(weights(target), weights(source))


def test_old_files_without_batch_counts_load(tmp_path):
    expected = {k: v for k, v in make_network(1).state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(expected, tmp_path / "net.pt")
    model = make_network(2)
    model[1].num_batches_tracked.fill_(5)
    load_weights(model, tmp_path / "net.pt")
    assert_equal({k: v for k, v in weights(model).items() if k in expected}, expected)
    assert int(model[1].num_batches_tracked) == 5


def test_saved_weights_load_again_in_any_layout_and_tied(tmp_path):
    source, target = make_network(1), make_network(2)
    source.to(memory_format=torch.channels_last)
    source[1].bias = source[1].weight
    save_weights(source, tmp_path / "new" / "net.safetensors")
    save_weights(source, tmp_path / "new" / "net.safetensors")  # replaces the first
    load_weights(target, tmp_path / "new" / "net.safetensors")
    assert_equal(weights(target), weights(source))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.safetensors"]


def test_weights_that_cannot_be_saved_leave_the_old_ones(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save_weights(make_network(1), path)
    monkeypatch.setattr("pruning.checkpoint.save_file", no_space)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: cannot be written: No space left"):
        save_weights(make_network(2), path)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    assert hash_weights(read_state_dict(path)) == hash_weights(make_network(1).state_dict())


def no_space(_, path: Path, **__) -> None:
    path.write_bytes(b"half of it")
    raise OSError("No space left on device")


def refused(tmp_path: Path, content: dict[str, Tensor], match: str) -> None:
    """Loading fails as told, and nothing was loaded."""
    torch.save(content, tmp_path / "net.pt")
    model = make_network(2)
    with pytest.raises(CheckpointError, match=match):
        load_weights(model, tmp_path / "net.pt")
    assert_equal(weights(model), weights(make_network(2)))


def test_missing_and_unexpected_names_are_counted_and_shown(tmp_path):
    content = weights(make_network(1))
    for name in ("0.weight", "1.weight", "1.bias", "1.running_mean"):
        content["new" + name] = content.pop(name)
    del content["new1.bias"], content["new1.running_mean"], content["new1.weight"]
    refused(
        tmp_path,
        content,
        r"does not fit Sequential: 4 missing \(0\.weight, 1\.weight, 1\.bias, …\); 1 unexpected \(new0\.weight\)$",
    )


def test_other_shapes_are_shown(tmp_path):
    content = weights(make_network(1)) | {"0.weight": torch.ones(2, 3, 3, 3)}
    refused(tmp_path, content, r"1 of another shape \(0\.weight: expected \(4, 3, 3, 3\), got \(2, 3, 3, 3\)\)$")


def test_another_number_of_classes_is_called_so(tmp_path):
    refused(tmp_path, weights(make_network(1, classes=100)), "the last layer has 100 classes, the network 10$")


def test_a_narrower_last_layer_is_not_mistaken_for_other_classes(tmp_path):
    refused(tmp_path, weights(make_network(1)) | {"3.weight": torch.ones(10, 2)}, r"1 of another shape \(3\.weight")


# ── the hash ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_hash_is_of_the_values_not_of_order_or_layout():
    state = weights(make_network(1))
    turned = {name: state[name] for name in reversed(state)}
    turned["0.weight"] = turned["0.weight"].contiguous(memory_format=torch.channels_last)
    assert hash_weights(turned) == hash_weights(state)
    assert len(hash_weights(state)) == 16


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"0.weight": s["0.weight"].nextafter(torch.tensor(9.0))},
        lambda s: s | {"3.bias": s["3.bias"].view(5, 2)},
        lambda s: s | {"3.bias": s["3.bias"].view(torch.int32)},
        lambda s: s | {"1.num_batches_tracked": torch.tensor(1)},
        lambda s: s | {"more": torch.zeros(0)},
        lambda s: {("x" + name): tensor for name, tensor in s.items()},
    ],
)
def test_the_hash_tells_every_change(change):
    state = weights(make_network(1))
    assert hash_weights(change(state)) != hash_weights(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.complex64])
def test_every_type_has_a_hash(dtype):
    assert hash_weights({"a": torch.ones(2, 2).to(dtype)}) != hash_weights({"a": torch.zeros(2, 2).to(dtype)})


# ── pruned networks ──────────────────────────────────────────────────────────────────────────────────────────────────

SPEC = ModelSpec(name="resnet20", options={"widths": [4, 6, 8]})
EXAMPLE = torch.zeros(2, 3, 16, 16)


def cut_network(share: float = 0.5) -> tuple[nn.Module, Policy, Kept]:
    return copy.deepcopy(cut_network_once(share))


@cache
def cut_network_once(share: float) -> tuple[nn.Module, Policy, Kept]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = build_model(SPEC)
        scores = {name: torch.rand(group.width) for name, group in find_groups(model, EXAMPLE).items()}
    groups = find_groups(model, EXAMPLE)
    widths = {name: max(1, int(share * width)) for name, width in groups.widths.items()}
    policy = Policy(model=SPEC, network=groups.signature, widths=widths)
    kept = prune(model, policy, NestedRanking.from_scores("random", scores), groups=groups, check=False)
    return model, policy, kept


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "net"
    save_pruned(folder, *cut_network())
    return folder


@pytest.fixture
def saved(saved_once, tmp_path) -> Path:
    return shutil.copytree(saved_once, tmp_path / "net")


def test_a_pruned_network_comes_back_bit_for_bit(tmp_path):
    model, policy, kept = cut_network()
    model.to(memory_format=torch.channels_last)
    save_pruned(tmp_path / "deep" / "net", model, policy, kept, image_shape=(3, 16, 16))
    random = torch.get_rng_state()
    loaded, loaded_policy, loaded_kept, image_shape = load_pruned(tmp_path / "deep" / "net")
    assert torch.equal(torch.get_rng_state(), random)
    assert_equal(weights(loaded), weights(model))
    assert (loaded_policy, loaded_kept, image_shape) == (policy, kept, (3, 16, 16))
    assert not any(module.training for module in loaded.modules())
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded(images), model.eval()(images))


def test_the_folder_holds_plain_files_and_nothing_lies_beside_it(saved_once):
    saved = saved_once
    assert list(saved.parent.iterdir()) == [saved]
    assert sorted(path.name for path in saved.iterdir()) == ["kept.json", "policy.json", "weights.safetensors"]
    cut = json.loads((saved / "kept.json").read_text())
    assert (cut["format"], cut["input_shape"]) == (1, [3, 32, 32])


def test_an_uncut_network_is_saved_too(tmp_path):
    model = build_model(SPEC)
    policy = Policy(model=SPEC, network="none", widths={})
    save_pruned(tmp_path / "net", model, policy, {})
    assert_equal(weights(load_pruned(tmp_path / "net").model), weights(model))


def test_groups_that_keep_all_need_no_indices(tmp_path):
    model, policy, kept = cut_network(share=1.0)
    assert kept == {}
    assert policy.widths != {}
    save_pruned(tmp_path / "net", model, policy, kept)
    assert_equal(weights(load_pruned(tmp_path / "net").model), weights(model))


def test_shared_tensors_are_saved(tmp_path):
    model, policy, kept = cut_network()
    first, second = model.layer1[0].bn1, model.layer1[1].bn1
    second.weight = first.weight
    save_pruned(tmp_path / "net", model, policy, kept)
    assert_equal(weights(load_pruned(tmp_path / "net").model), weights(model))


def test_a_folder_that_holds_something_is_not_touched(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="expected a new or empty folder"):
        save_pruned(tmp_path / "net", *cut_network())
    assert [path.name for path in (tmp_path / "net").iterdir()] == ["thesis.txt"]
    with pytest.raises(CheckpointError, match="expected a new or empty folder"):
        save_pruned(tmp_path / "net" / "thesis.txt", *cut_network())


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "net").mkdir()
    save_pruned(tmp_path / "net", *cut_network())
    load_pruned(tmp_path / "net")


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("pruning.checkpoint.save_file", no_space)
    with pytest.raises(CheckpointError, match="cannot be written: No space left"):
        save_pruned(tmp_path / "net", *cut_network())
    assert list(tmp_path.iterdir()) == []


def test_kept_channels_that_are_not_the_policy_s_are_not_saved(tmp_path):
    model, policy, kept = cut_network()
    name = next(iter(kept))
    with pytest.raises(CheckpointError, match=rf"kept\.{name}: expected {len(kept[name])} channels, got 1"):
        save_pruned(tmp_path / "net", model, policy, kept | {name: (0,)})
    with pytest.raises(CheckpointError, match=r"kept\.other: expected all channels, got 1"):
        save_pruned(tmp_path / "net", model, policy, kept | {"other": (0,)})
    with pytest.raises(CheckpointError, match="ascending indices, each once"):
        save_pruned(tmp_path / "net", model, policy, kept | {name: kept[name][::-1]})
    assert list(tmp_path.iterdir()) == []


def edited(folder: Path, **changes) -> Path:
    path = folder / "kept.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([1, 0], "ascending indices, each once"),
        ([0, 0], "ascending indices, each once"),
        ([-1, 0], "greater than or equal to 0"),
        (["0", "1"], "valid integer"),
        ([0.0, 1.0], "valid integer"),
        ([True, False], "valid integer"),
        (3, "valid array"),
    ],
)
def test_kept_indices_are_checked(saved, indices, message):
    kept = json.loads((saved / "kept.json").read_text())["kept"]
    with pytest.raises(CheckpointError, match=rf"kept\.json: kept.*{message}"):
        load_pruned(edited(saved, kept=kept | {"layer1.0.conv1": indices}))


def test_kept_channels_and_policy_must_agree(saved):
    kept = json.loads((saved / "kept.json").read_text())["kept"]
    with pytest.raises(CheckpointError, match=r"kept\.layer1\.0\.conv1: expected 2 channels, got 3"):
        load_pruned(edited(saved, kept=kept | {"layer1.0.conv1": [0, 1, 2]}))
    with pytest.raises(CheckpointError, match=r"kept\.layer1\.0\.conv1: expected 2 channels, got 4"):
        load_pruned(edited(saved, kept={k: v for k, v in kept.items() if k != "layer1.0.conv1"}))
    with pytest.raises(CheckpointError, match=r"kept\.layer9: expected .* got 1"):
        load_pruned(edited(saved, kept=kept | {"layer9": [0]}))
    with pytest.raises(CheckpointError, match=r"kept\.layer1\.0\.conv1: .*below 4, got \[0, 99\]"):
        load_pruned(edited(saved, kept=kept | {"layer1.0.conv1": [0, 99]}))


def test_a_damaged_folder_is_an_error(saved):
    with pytest.raises(CheckpointError, match=r"format: .*1, got 2"):
        load_pruned(edited(saved, format=2))
    with pytest.raises(CheckpointError, match=r"input_shape\.0"):
        load_pruned(edited(saved, format=1, input_shape=[0, 32, 32]))
    (saved / "kept.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"kept\.json: kept channels: Invalid JSON"):
        load_pruned(saved)
    (saved / "kept.json").unlink()
    with pytest.raises(CheckpointError, match=r"kept\.json: No such file"):
        load_pruned(saved)
    with pytest.raises(PolicyError, match="No such file"):
        load_pruned(saved.parent)


def test_weights_of_another_cut_are_an_error(saved):
    save_file(weights(build_model(SPEC)), saved / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"pruned network .*net: does not fit ResNetCifar: \d+ of another shape"):
        load_pruned(saved)


def test_a_policy_for_another_network_is_an_error(saved):
    policy = json.loads((saved / "policy.json").read_text())
    (saved / "policy.json").write_text(json.dumps(policy | {"network": "0" * 16}))
    with pytest.raises(PolicyError, match="made for a network with signature 0000"):
        load_pruned(saved)


# ── real files ───────────────────────────────────────────────────────────────────────────────────────────────────────


class TestPublishedWeights:
    pytestmark = needs_data

    @pytest.mark.parametrize(
        ("file", "name"),
        [
            ("resnet20-12fca82f.th", "resnet20"),
            ("resnet56-4bfd9763.th", "resnet56"),
            ("resnet56_cifar10_jpeg.th", "resnet56"),
        ],
    )
    def test_fit_our_networks(self, file, name):
        model = build_model(ModelSpec(name=name))
        load_weights(model, DATA / file)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean)) for norm in norms)

    def test_do_not_fit_a_deeper_network(self):
        with pytest.raises(CheckpointError, match=r"\d+ missing \(layer1\.3\.conv1\.weight"):
            load_weights(build_model(ModelSpec(name="resnet32")), DATA / "resnet20-12fca82f.th")
