"""Small files that stand for much: refused in one line before the memory is taken."""

import json
import struct
import tracemalloc
import zipfile

import pytest
import torch
from readers import network
from safetensors.torch import save_file

from pruning import (
    CheckpointError,
    ModelError,
    ModelSpec,
    PolicyError,
    PruningError,
    RankingError,
    build_model,
    layout_of,
    limits,
    load_policy,
    load_pruned,
    load_ranking,
    load_weights,
    parse_json,
    save_weights,
)
from pruning.checkpoint import read_state_dict
from pruning.errors import OptionError
from search.config import load_experiment
from search.errors import ExperimentError, SearchError, SweepError
from search.journal import Journal
from search.reading import LARGEST_EXPERIMENT, LONGEST_LINE, MOST_NODES, read_json
from search.tracking.outbox import OUTBOX, read_lines
from search.tracking.position import waiting

DEEP = 200_000


@pytest.fixture
def little_memory():
    """What Python allocates meanwhile; tensors are not counted."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * LONGEST_LINE


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)
    return path


# ── policies ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("little_memory")
def test_a_policy_of_a_billion_groups(tmp_path):
    path = sparse(tmp_path / "policy.json", 30 * 10**9)
    with pytest.raises(PolicyError, match=r"policy.json: expected at most 16,777,216 bytes, got more"):
        load_policy(path)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_nested_too_deep(tmp_path, opening):
    path = tmp_path / "file.json"
    path.write_text(opening * DEEP)
    with pytest.raises(PolicyError, match="recursion limit"):
        load_policy(path)
    with pytest.raises(SearchError, match="nested too deep"):
        read_json(path, SearchError)


@pytest.mark.parametrize(
    "spec",
    [
        {"num_classes": 10**12},
        {"num_classes": 2**20, "options": {"widths": [16, 32, 4096]}},
        {"options": {"widths": [10**12] * 3}},
        {"options": {"widths": [10**5] * 3}},
        {"options": {"in_channels": 10**9}},
        {"options": {"in_channels": "3"}},
        {"options": {"widths": [2**70] * 3}},
        {"name": "mobilenet_v2", "options": {"inverted_residual_setting": [[1, 8, 10**9, 1]]}},
        {"name": "densenet121", "options": {"growth_rate": 10**6}},
    ],
)
def test_a_network_larger_than_memory(spec):
    with pytest.raises((ModelError, OptionError, CheckpointError)) as error:
        layout_of(ModelSpec.model_validate({"name": "resnet20", **spec}))
    assert "model '" in str(error.value)


def test_an_image_larger_than_memory():
    with pytest.raises(PruningError, match="images of at most"):
        layout_of(ModelSpec(name="resnet20"), (3, 10**6, 10**6))


def test_a_large_network_that_fits_is_built():
    assert build_model(ModelSpec(name="resnet20", num_classes=21841)).linear.out_features == 21841
    assert build_model(ModelSpec(name="resnet20", options={"widths": [64, 128, 256]})).linear.in_features == 256


def test_kept_channels_of_an_image_larger_than_memory(tmp_path, pruned):
    cut = json.loads((pruned / "kept.json").read_text())
    (pruned / "kept.json").write_text(json.dumps(cut | {"input_shape": [1, 10**7, 10**7]}))
    with pytest.raises(CheckpointError, match="input_shape: expected images of at most"):
        load_pruned(pruned, trusted=["readers:network"])


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_packed_archive_that_gets_a_thousand_times_as_large(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"w": torch.zeros(10)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("net/data/1", "w") as entry:
        for _ in range(100):
            entry.write(bytes(2**20))
    with pytest.raises(CheckpointError, match=r"expected at most [\d,]+ bytes when unpacked, got 104,8"):
        read_state_dict(path)


def test_a_packed_archive_of_weights_is_read(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "net.pth")
    packed = zipfile.ZipFile(tmp_path / "b.pth", "w")
    with zipfile.ZipFile(tmp_path / "net.pth") as one, packed as two:
        for entry in one.infolist():
            two.writestr(entry.filename, one.read(entry), zipfile.ZIP_DEFLATED)
    assert read_state_dict(tmp_path / "b.pth")["w"].shape == (1000,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**10),
        torch.zeros(0, 2**40),
        torch.empty(10**6, 10**6, device="meta"),
        torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (2**40,)),
    ],
    ids=["repeated", "empty", "meta", "sparse"],
)
def test_tensors_that_claim_more_than_their_file_has(tmp_path, tensor, zipped):
    torch.save({"w": tensor}, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"w: expected (values that|a dense tensor)"):
        read_state_dict(tmp_path / "net.pth")


def test_weights_that_repeat_are_read(tmp_path):
    torch.save({"w": torch.ones(1, 64).expand(64, 64)}, tmp_path / "net.pth")
    assert read_state_dict(tmp_path / "net.pth")["w"].sum() == 64**2


def test_a_container_inside_itself(tmp_path):
    content = {"w": torch.zeros(1)}
    content["state_dict"] = content
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="expected a state_dict"):
        read_state_dict(tmp_path / "net.pth")


def test_names_of_nothing_but_prefixes(tmp_path):
    torch.save({"module." * 20_000 + "w": torch.zeros(1)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="does not fit Sequential") as error:
        load_weights(network(), tmp_path / "net.pth")
    assert len(str(error.value)) <= 1000


@pytest.mark.parametrize("length", [2**60, 2**31, 10**9])
def test_a_header_of_exabytes(tmp_path, length):
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"w":')
    with pytest.raises(CheckpointError, match="damaged safetensors"):
        read_state_dict(path)
    with pytest.raises(RankingError, match="ranking "):
        load_ranking(path)


def test_an_empty_order_of_a_long_group(tmp_path):
    about = {"format": "1", "ranking": '{"criterion": "l1"}'}
    save_file({"order/a": torch.zeros(2**40, 0, dtype=torch.int64)}, tmp_path / "l1.safetensors", metadata=about)
    with pytest.raises(RankingError, match=r"expected values that .* bytes can hold"):
        load_ranking(tmp_path / "l1.safetensors")


def test_limits_leave_room_for_what_is_usual(tmp_path):
    save_weights(network(), tmp_path / "net.safetensors")
    tensors = read_state_dict(tmp_path / "net.safetensors")
    limits.check_claims("here", tensors, 1)


# ── experiments ──────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(path, text):
    path.write_text(text)
    with pytest.raises(ExperimentError) as error:
        load_experiment(path)
    return str(error.value)


@pytest.mark.usefixtures("little_memory")
def test_a_billion_laughs(tmp_path):
    lines = ["name: a", "x0: &x0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert f"expected at most {MOST_NODES:,} values" in refused(tmp_path / "e.yaml", "\n".join(lines))
    assert f"expected at most {MOST_NODES:,} values" in refused(tmp_path / "e.yaml", "name: &a [*a]")
    assert f"expected at most {MOST_NODES:,} values" in refused(tmp_path / "e.yaml", "name: &a {b: {c: *a}}")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_yaml_nested_too_deep(tmp_path, opening):
    assert "nested too deep" in refused(tmp_path / "e.yaml", f"name: a\nx:\n  {opening * 5000}")


@pytest.mark.usefixtures("little_memory")
def test_an_experiment_of_gigabytes(tmp_path):
    path = sparse(tmp_path / "e.yaml", 10**10)
    with pytest.raises(ExperimentError, match=f"expected at most {LARGEST_EXPERIMENT:,} bytes"):
        load_experiment(path)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system [id]",
        "!!int x",
        "2020-13-45",
        "9" * 5000,
        "!!timestamp x",
        "!!bool x",
        "!!set x",
    ],
)
def test_values_that_no_experiment_has(tmp_path, value):
    assert "not YAML" in refused(tmp_path / "e.yaml", f"name: {value}")


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("little_memory")
def test_a_line_of_gigabytes(tmp_path):
    path = sparse(tmp_path / "lines", 4 * 10**8)
    with path.open("ab") as file:
        file.write(b'\n{"kind": "closed"}\n')
    assert [line for line, _ in read_lines(path)] == [None, {"kind": "closed"}]
    with pytest.raises(SweepError, match="line 1: expected at most 67,108,864 bytes, got 400,000,001"):
        list(Journal(path).read_logs(0))


# ── characters ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", [r'{"a": "\ud800"}', r'{"\uDFFF": 1}', r'["\ude00\ud83d"]', '["\ud800"]'], ids=ascii)
def test_half_a_character_is_no_json(text):
    for form in (text, text.encode("utf-8", "surrogatepass")):
        with pytest.raises(ValueError, match="half a character"):
            parse_json(form)


@pytest.mark.parametrize("text", [r'["\ud83d\ude00"]', r'["\\ud800"]', '["\U0001f600"]'], ids=ascii)
def test_whole_characters_are_read(text):
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


def test_a_line_of_an_outbox_with_half_a_character_is_torn(tmp_path):
    (tmp_path / OUTBOX).write_text('{"kind": "start", "sweep_id": "\\ud800", "uri": null, "experiment": {}}\n')
    assert waiting(tmp_path, "sqlite:///x.db") == 0
