"""An exported file does what the network does, for batches of any size; what does not is never there."""

import sys

import onnx
import onnxruntime
import pytest
import torch
from three_blocks import make_images, make_net, make_split
from torch import nn

from pruning import (
    CRITERIA,
    ExportError,
    ModelSpec,
    PruningError,
    UnknownNameError,
    build_model,
    compare_latency,
    compare_outputs,
    export_network,
    find_groups,
    load_exported,
    prune,
)
from pruning.errors import OptionError
from pruning.export import RANDOM_BATCHES, TOLERANCE

SHAPE = (3, 8, 8)


def narrow_resnet20():
    """Return a ResNet-20 of a few channels, cut for real, with batch norms that are not neutral."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = build_model(ModelSpec(name="resnet20"))
        model(torch.randn(16, 3, 32, 32))
    example = torch.zeros(2, 3, 32, 32)
    groups = find_groups(model, example)
    widths = dict.fromkeys(groups.matching(("inner",)), 3) | {"conv1": 5}
    prune(model, widths, CRITERIA.build("l1").rank(model, groups), groups=groups, example_input=example)
    return model


@pytest.fixture(scope="module")
def resnet():
    return narrow_resnet20()


@pytest.fixture(scope="module")
def exported(resnet, tmp_path_factory):
    """The narrow network, still in train mode, in both formats."""
    return export_network(resnet, tmp_path_factory.mktemp("exported"), image_shape=(3, 32, 32))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small network in both formats, compared on 20 images, too."""
    folder = tmp_path_factory.mktemp("small") / "new" / "folder"
    return export_network(make_net(), folder, image_shape=SHAPE, images=make_split(), name="small")


def outputs(model, images):
    with torch.no_grad():
        return model.eval()(images)


# ── the files ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_cut_network_and_its_files_give_the_same_for_batches_of_any_size(exported, resnet, size):
    images = torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(size))
    expected = outputs(resnet, images)
    onnx_file, pt2_file = (it.path for it in exported)
    (found,) = onnxruntime.InferenceSession(onnx_file).run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    assert torch.equal(torch.export.load(pt2_file).module()(images), expected)
    for it in exported:
        torch.testing.assert_close(load_exported(it.path)(images), expected, rtol=1e-4, atol=1e-4)


def test_onnx_names_its_input_its_output_and_the_batch(exported):
    graph = onnx.load(exported[0].path).graph
    sizes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert sizes == {"images": ["batch", 3, 32, 32], "logits": ["batch", 10]}
    onnx.checker.check_model(onnx.load(exported[0].path), full_check=True)


def test_a_file_comes_with_its_size_and_with_how_far_it_agrees(small):
    assert [(it.format, it.path.name, it.size_bytes) for it in small] == [
        (name, f"small.{name}", small[0].path.with_name(f"small.{name}").stat().st_size) for name in ("onnx", "pt2")
    ]
    assert {path.name for path in small[0].path.parent.iterdir()} == {"small.onnx", "small.pt2"}
    for it in small:
        assert (it.on_noise.images, it.on_images.images, it.on_images.same_class) == (sum(RANDOM_BATCHES), 20, 20)
        assert 0 <= it.on_noise.difference <= it.difference <= TOLERANCE
    assert small[1].difference == 0  # the same operations


@pytest.mark.data
def test_the_published_resnet20_names_the_same_class_for_every_real_image(resnet20, cifar, tmp_path):
    for it in export_network(resnet20, tmp_path, image_shape=(3, 32, 32), images=cifar.test):
        assert it.on_images.same_class == it.on_images.images == len(cifar.test)


def test_files_are_measured_like_networks(small):
    networks = {"torch": make_net(), **{it.format: load_exported(it.path) for it in small}}
    found = compare_latency(networks, torch.zeros(2, *SHAPE), repeats=2, warmup=1)
    assert all(latency.median_ms > 0 and latency.batch == 2 for latency in found.values())


def test_network_and_random_state_are_as_found(tmp_path):
    model = make_net().train()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    export_network(model, tmp_path, ["pt2"], image_shape=SHAPE)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_that_exists_is_replaced_only_if_that_is_wanted(tmp_path):
    path = tmp_path / "network.pt2"
    path.write_text("mine")
    with pytest.raises(ExportError, match=r"network\.pt2: exists; name another folder, or force it"):
        export_network(make_net(), tmp_path, image_shape=SHAPE)
    assert ([*tmp_path.iterdir()], path.read_text()) == ([path], "mine")
    (made,) = export_network(make_net(), tmp_path, ["pt2"], image_shape=SHAPE, force=True)
    assert torch.equal(load_exported(made.path)(make_images()), outputs(make_net(), make_images()))


# ── the comparison ───────────────────────────────────────────────────────────────────────────────────────────────────


def shifted(network, by, image=0):
    """Return a run that adds to the first logit of one image of each batch."""

    def run(images):
        found = network(images).clone()
        found[image, 0] += by
        return found

    return run


def test_the_difference_is_the_largest_of_all_batches_as_a_part_of_the_largest_output():
    network = make_net().eval()
    batches = [make_images(count) for count in (2, 5)]
    others = {"equal": network, "near": shifted(network, 1e-5)}
    found = compare_outputs(network, others, batches)
    assert (found["equal"].difference, found["equal"].images, found["equal"].same_class) == (0, 7, 7)
    with torch.no_grad():
        naive = [float((others["near"](x) - network(x)).abs().max() / network(x).abs().max()) for x in batches]
    assert found["near"].difference == max(naive) > 0


def test_classes_are_counted_image_by_image():
    class Tie(nn.Module):
        def forward(self, images):
            return torch.tensor([1.0, 1.0, 0.0]).expand(len(images), 3)

    found = compare_outputs(Tie(), {"nearly": shifted(Tie(), -1e-6, image=2)}, [make_images(4)])
    assert (found["nearly"].images, found["nearly"].same_class) == (4, 3)


@pytest.mark.parametrize(("lead", "fits"), [(0.5, True), (1.5, False)])
def test_another_class_is_refused_unless_the_two_are_as_good_as_equal(lead, fits):
    class Close(nn.Module):
        def forward(self, images):
            return torch.tensor([1 - lead * TOLERANCE, 1.0]).expand(len(images), 2)

    def other(images):
        return Close()(images) + 0.9 * TOLERANCE * torch.tensor([1, -1])

    if fits:
        assert compare_outputs(Close(), {"other": other}, [make_images(4)])["other"].same_class == 0
    else:
        with pytest.raises(ExportError, match="other: names another class than the network for 4 of 4 images"):
            compare_outputs(Close(), {"other": other}, [make_images(4)])


@pytest.mark.parametrize(("by", "fits"), [(0.5, True), (2, False), (float("nan"), False)])
def test_an_output_beyond_the_tolerance_is_refused(by, fits):
    network = make_net().eval()
    largest = float(outputs(network, make_images()).abs().max())
    other = {"other": shifted(network, by * TOLERANCE * largest)}
    if fits:
        compare_outputs(network, other, [make_images()])
    else:
        with pytest.raises(ExportError, match=r"other: differs .* on a batch of 6, more than 0.00012"):
            compare_outputs(network, other, [make_images()])


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda images: images.mean((2, 3))[:, :2], r"other: expected outputs \(6, 3\), got \(6, 2\)"),
        (lambda images: (images, images), "other: expected logits, got tuple"),
        (lambda images: images.view(5), r"other: does not run on images \(6, 3, 8, 8\): shape '\[5\]' is invalid"),
    ],
)
def test_another_kind_of_output_is_refused(run, reason):
    with pytest.raises(ExportError, match=reason):
        compare_outputs(make_net().eval(), {"other": run}, [make_images()])


# ── what cannot be exported ──────────────────────────────────────────────────────────────────────────────────────────


class Branches(nn.Module):
    """Looks at its input and decides."""

    def forward(self, images):
        means = images.mean((2, 3))
        return means if means.sum() > 0 else -means


class FixedBatch(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) * (2 if len(images) > 1 else 1)


class Unconverted(nn.Module):
    """Uses an operator that ONNX lacks."""

    def forward(self, images):
        return torch.special.gammaln(images.mean((2, 3)).abs() + 1)


class Noisy(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) + torch.rand(3)


class Lists(nn.Module):
    """Leaves torch on its way."""

    def forward(self, images):
        return torch.tensor(images.mean((2, 3)).tolist())


class TwoOutputs(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)), images


class Pairs(nn.Module):
    """Wants an even number of images."""

    def forward(self, images):
        return images.mean((2, 3)).view(len(images) // 2, 6)


class Overflows(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) / 0


@pytest.mark.parametrize(
    ("network", "formats", "reason"),
    [
        (
            Branches,
            ["pt2"],
            r"Branches: what it does depends on values of its input at test_export\.py:\d+, `return m",
        ),
        (
            FixedBatch,
            ["pt2"],
            r"FixedBatch: it takes batches of 2 images only, .*use x\.shape\[0\], -1 or flatten",
        ),
        (Unconverted, ["pt2", "onnx"], r"onnx: has no counterpart of the operator prims\.lgamma; .*export to pt2"),
        (
            Noisy,
            ["pt2"],
            r"pt2: differs from the network by \d.* on a batch of 1, .*; does it draw random",
        ),
        (Lists, ["pt2"], r"Lists: "),
        (Pairs, ["pt2"], r"Pairs: does not run on images \(1, 3, 8, 8\): shape '\[0, 6\]' is invalid"),
        (TwoOutputs, ["onnx"], "TwoOutputs: expected logits, got tuple"),
        (Overflows, ["pt2"], r"Overflows: expected finite outputs, got others on images \(1, 3, 8, 8\)"),
    ],
)
def test_a_network_that_cannot_be_exported_is_told_why_and_leaves_nothing(tmp_path, capfd, network, formats, reason):
    with pytest.raises(ExportError, match=reason) as caught:
        export_network(network(), tmp_path / "new" / "folder", formats, image_shape=SHAPE)
    assert str(caught.value).count("\n") == 0
    assert not any(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")  # the exporters' own logs are pages long


def test_a_package_that_is_missing_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"onnx: needs onnxscript: .*; pip install 'prunesearch\[export\]'"):
        export_network(make_net(), tmp_path / "new", image_shape=SHAPE)
    assert not any(tmp_path.iterdir())


def test_formats_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown export format 'onx'; did you mean 'onnx'"):
        export_network(make_net(), tmp_path, ["onx"], image_shape=SHAPE)
    with pytest.raises(OptionError, match="expected a format of onnx, pt2, got none"):
        export_network(make_net(), tmp_path, [], image_shape=SHAPE)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file.*: cannot be written: Not a directory"):
        export_network(make_net(), tmp_path / "file" / "folder", image_shape=SHAPE)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("network.onnx", r"onnx: onnxruntime does not take network\.onnx"),
        ("network.pt2", r"pt2: torch\.export does not take network\.pt2"),
        ("network.pth", r"network\.pth: expected a suffix of onnx, pt2, got 'pth'"),
    ],
)
def test_a_file_that_is_no_export_is_refused(tmp_path, name, reason):
    (tmp_path / name).write_text("nothing")
    with pytest.raises(PruningError, match=reason):
        load_exported(tmp_path / name)
