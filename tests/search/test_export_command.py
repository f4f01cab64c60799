"""`prunesearch export`: files that are the pruned network, and an honest table beside them."""

import re
from types import SimpleNamespace

import onnxruntime
import pytest
import tiny
import torch
from torch import nn

from pruning import (
    Agreement,
    Exported,
    Latency,
    ModelSpec,
    Policy,
    build_model,
    find_groups,
    load_data,
)
from search import export
from search.errors import SearchError
from search.export import Report, is_faster, parse_batches


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save_cut(tmp_path_factory.mktemp("networks") / "pruned")


def rows(text):
    """The table's rows by format, cell by cell."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if line[0] in ("torch", "onnx", "pt2")}


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_files_lie_beside_the_network_and_are_it(call, tmp_path):
    folder = tiny.save_cut(tmp_path / "pruned")
    code, text, complaint = call("export", folder, *tiny.TRUST, "--batch", "1,3", "--repeats", 2)
    assert (code, complaint) == (0, "")
    images = torch.randn(4, *tiny.IMAGE_SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tiny.load_cut(folder).model(images)
    (found,) = onnxruntime.InferenceSession(folder / "network.onnx").run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.export.load(folder / "network.pt2").module()(images), expected)
    table = rows(text)
    assert list(table) == ["torch", "onnx", "pt2"]
    assert [table[name][0] for name in ("onnx", "pt2")] == [str(folder / "network.onnx"), str(folder / "network.pt2")]
    assert len(table["torch"]) == 4  # two sizes of batches, cut and uncut
    assert all(float(cell) > 0 for row in table.values() for cell in row[-4:])
    header = next(line for line in text.splitlines() if "size" in line)
    assert re.split(r"\s{2,}", header.strip())[-4:] == ["1 image (ms)", "uncut", "3 images (ms)", "uncut"]


@pytest.mark.parametrize(("options", "split"), [((), "validation"), (("--test",), "test")])
def test_real_images_are_compared_one_by_one(call, saved, file, tmp_path, options, split):
    asked = ["--format", "pt2", "-o", tmp_path / "out", "--batch", 1, "--repeats", 1, "--images", file(), *options]
    code, text, complaint = call("export", saved, *asked)
    assert (code, complaint) == (0, "")
    data = load_data("digits", size=8, channels=1, train_images=300)
    count = len(data.test if split == "test" else data.val)
    assert f"comparing on noise and {count:,} {split} images" in text
    assert f"{count:,} of {count:,}" in rows(text)["pt2"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"network.pt2"}


def test_settings_choose_the_images(call, refused, saved, file, tmp_path):
    narrower = ["--set", "data.options.channels=3"]
    complaint = refused("export", saved, "-o", tmp_path / "out", "--images", file(), *narrower)
    assert "--images: expected images (1, 8, 8) in 10 classes, as the network takes them, got (3, 8, 8) in" in complaint


def test_nothing_is_overwritten_unless_that_is_wanted(call, refused, tmp_path):
    folder = tiny.save_cut(tmp_path / "pruned")
    (folder / "network.pt2").write_text("mine")
    assert "network.pt2: exists; name another folder, or force it" in refused(
        "export", folder, "--repeats", 1, *tiny.TRUST
    )
    assert (folder / "network.pt2").read_text() == "mine"
    assert call("export", folder, *tiny.TRUST, "--repeats", 1, "--format", "pt2", "--batch", 1, "--force")[0] == 0
    assert (folder / "network.pt2").read_bytes()[:2] == b"PK"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--format", "onx"], "unknown export format 'onx'; did you mean 'onnx'?"),
        (["--batch", "1,many"], "--batch: expected numbers of images such as 1,64, got '1,many'"),
        (["--batch", "0"], "--batch: expected numbers"),
        (["--test"], "--test: expected --images EXPERIMENT with it, got none"),
        (["--set", "seed=1"], "--set: expected --images EXPERIMENT with it, got none"),
        (["--images", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["--repeats", "0"], "'--repeats'"),
    ],
)
def test_a_mistake_is_one_line(refused, saved, tmp_path, arguments, reason):
    assert reason in refused("export", saved, *tiny.TRUST, "-o", tmp_path / "out", *arguments)


def test_a_folder_without_a_pruned_network_is_one_line(refused, tmp_path):
    folder = tiny.save_cut(tmp_path / "pruned")
    (folder / "kept.json").unlink()
    for place, missing in ((folder, "kept.json"), (tmp_path, "policy.json"), (tmp_path / "none", "policy.json")):
        assert f"{place}: expected a pruned network as `prunesearch apply` writes it, found no {missing}" in refused(
            "export", place
        )


def test_a_network_that_no_graph_can_be_is_one_line(refused, tmp_path):
    folder = tiny.save_cut(tmp_path / "pruned", model="tiny:choosy")
    complaint = refused("export", folder, *tiny.TRUST)
    assert "Choosy: what it does depends on values of its input at tiny.py:" in complaint
    assert "use torch.where" in complaint


# ── what is measured ─────────────────────────────────────────────────────────────────────────────────────────────────


def latency(median, spread=0.1, batch=1):
    return Latency(median, median - spread, median + spread, batch, "cpu", 1, None)


@pytest.mark.parametrize(
    ("one", "other", "faster"),
    [
        (latency(3.0), latency(3.5), True),
        (latency(3.5), latency(3.0), False),
        (latency(3.0), latency(3.0), False),
        (latency(3.0), latency(3.05), False),  # within the quartiles
        (latency(3.0, spread=0.6), latency(3.5), False),
        (latency(3.0), latency(3.5, spread=0.6), False),
    ],
)
def test_faster_is_beyond_the_noise(one, other, faster):
    assert is_faster(one, other) == faster


def report(**rounded):
    """Return what a measurement at 1 and 64 images gave, where rounded networks took so long."""
    noise = Agreement(2e-7, 6, 6)
    files = tuple(Exported(form, f"/x/network.{form}", 616_000, noise) for form in ("onnx", "pt2"))
    cut = {"cut torch": latency(9.0), "cut onnx": latency(3.6), "cut pt2": latency(8.0), "uncut torch": latency(12.0)}
    rounded = {int(batch.removeprefix("at_")): {"rounded onnx": latency(ms)} for batch, ms in rounded.items()}
    return Report(files, None, {batch: {**cut, **rounded.get(batch, {})} for batch in (1, 64)})


def test_rounding_is_proposed_where_it_was_faster_and_nowhere_else():
    assert report(at_1=3.1, at_64=3.7).advice() == [
        "rounded up to multiples of 8, onnx would take 3.1 ms instead of 3.6 for 1 image: search.widths.round_to: 8"
    ]
    assert report(at_1=3.6, at_64=3.58).advice() == []
    assert report().advice() == []


def test_the_table_says_what_was_measured_and_leaves_open_what_was_not():
    headers, (torch_row, onnx_row, pt2_row) = report().table()
    assert headers == [
        *("", "file", "size", "difference", "same top-1"),
        *("1 image (ms)", "uncut", "64 images (ms)", "uncut"),
    ]
    assert torch_row == ["torch", "", "", "", "", "9", "12", "9", "12"]
    assert onnx_row == ["onnx", "/x/network.onnx", "616 kB", "2.0e-07", "", "3.6", "–", "3.6", "–"]
    assert pt2_row[-4:] == ["8", "–", "8", "–"]


def widths_of(network):
    return {name: module.out_channels for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize(
    ("widths", "rounded"),
    [
        ({"first": 5, "second": 9}, {"first": 8, "second": 16}),
        ({"first": 7, "second": 8}, {"first": 8, "second": 8}),
        ({"first": 3}, {"first": 8, "second": 16}),  # a group that is not cut stays whole
        ({"first": 8, "second": 8}, None),
        ({"second": 16}, None),
    ],
)
def test_widths_are_rounded_up_to_what_groups_may_have(tmp_path, widths, rounded):
    network = export._rounded(tiny.load_cut(tiny.save_cut(tmp_path / "pruned", widths)))
    assert (None if network is None else widths_of(network)) == rounded


def test_a_full_width_that_is_no_multiple_is_the_most(tmp_path):
    narrow = ModelSpec(name="tiny:network", options={"widths": [6, 12]})
    network = build_model(narrow)
    groups = find_groups(network, torch.zeros(2, *tiny.IMAGE_SHAPE))
    policy = Policy(model=narrow, network=groups.signature, widths={"first": 2, "second": 9})
    pruned = SimpleNamespace(policy=policy, image_shape=tiny.IMAGE_SHAPE)
    assert widths_of(export._rounded(pruned)) == {"first": 6, "second": 12}


def test_batches_are_read_once_each():
    assert parse_batches(" 64, 1,64 ") == (64, 1)
    with pytest.raises(SearchError, match=r"got '1\.5'"):
        parse_batches("1.5")
