"""Feature maps of kept and removed channels."""

import matplotlib.image
import pytest
import tiny
import torch
from PIL import Image
from torch.nn import functional as F

from pruning import CRITERIA, find_groups
from search import show_channels as module
from search.prepare import prepare_unranked
from search.show_channels import show_channels


@pytest.fixture
def drawn(monkeypatch):
    """What was handed to the drawing, last."""
    handed = {}
    draw = module.plot_maps

    def noted(images, kept, removed, **options):
        handed.update(images=images, kept=kept, removed=removed, **options)
        return draw(images, kept, removed, **options)

    monkeypatch.setattr(module, "plot_maps", noted)
    return handed


def test_the_command_draws_validation_images_with_the_maps_that_the_next_layer_reads(call, file, tmp_path, drawn):
    output = tmp_path / "new" / "channels.png"
    code, text, complaint = call("show-channels", file(), "--group", "first", "--width", "3", "-o", output)
    assert (code, complaint) == (0, "")
    assert f"picture written to {output}" in text.splitlines()
    assert matplotlib.image.imread(output).std() > 0.05
    inputs = prepare_unranked(tiny.experiment(tmp_path / "sweeps"))
    network, split = inputs.network(), inputs.data.val.subset(3, 0)
    images, labels = next(iter(split.batches(3)))
    with torch.no_grad():
        maps = network.first_norm(network.first(images)).relu()
    order = CRITERIA.build("l1").rank(network, inputs.groups).orders["first"].tolist()
    assert (drawn["kept"], drawn["removed"]) == (order[:3], order[3:])
    assert [image.title for image in drawn["images"]] == [str(label) for label in labels.tolist()]
    for image, expected, pixels in zip(drawn["images"], maps, split.images, strict=True):
        assert torch.equal(torch.from_numpy(image.maps), expected)
        assert torch.allclose(torch.from_numpy(image.picture), pixels[0] / 255, atol=1e-6)
    assert drawn["title"] == "first: l1 keeps 3 of 8 channels"
    assert drawn["subtitle"].startswith("as second reads them, 8 × 8")


def test_a_linear_reader_shows_maps_of_one_place(tmp_path, drawn):
    show_channels(tiny.experiment(tmp_path), "second", tmp_path / "out.png", images=2)
    assert [image.maps.shape for image in drawn["images"]] == [(16, 1, 1)] * 2
    assert drawn["subtitle"].startswith("as classifier reads them, 1 × 1")


def test_an_image_file_is_resized_and_normalised_as_the_data_are(tmp_path, drawn):
    pixels = torch.randint(256, (24, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    Image.fromarray(pixels.numpy()).resize((32, 48), Image.Resampling.NEAREST).save(tmp_path / "one.png")
    show_channels(tiny.experiment(tmp_path), "first", tmp_path / "out.png", files=[tmp_path / "one.png"])
    (image,) = drawn["images"]
    assert (image.title, image.picture.shape) == ("one.png", (8, 8))
    small = F.interpolate(pixels[None, None].float(), size=(12, 8), mode="bilinear", antialias=True)[0, 0, 2:10] / 255
    assert abs(torch.from_numpy(image.picture) - small).mean() < 0.05
    inputs = prepare_unranked(tiny.experiment(tmp_path))
    seen = (torch.from_numpy(image.picture) - 0.305) / 0.32
    with torch.no_grad():
        expected = inputs.network().first_norm(inputs.network().first(seen[None, None])).relu()[0]
    assert torch.allclose(torch.from_numpy(image.maps), expected, atol=1e-5)


def test_criterion_width_and_number_of_images_each_change_something(tmp_path, drawn):
    asked, seen = tiny.experiment(tmp_path), []
    for options in ({}, {"criterion": "random"}, {"width": "25%"}, {"images": 1}):
        show_channels(asked, "second", tmp_path / "out.png", **options)
        seen.append((tuple(drawn["kept"]), len(drawn["images"])))
    assert len(set(seen)) == 4
    assert len(seen[2][0]) == 4
    assert set(seen[0][0]) > set(seen[2][0])


def test_a_group_that_is_not_searched_is_ranked_by_itself_and_the_cache_stays(tmp_path, drawn):
    sections = {"model": "tiny:blocks", "baseline": {"epochs": 1}, "search": {"groups": "inner"}}
    asked = tiny.experiment(tmp_path, **sections)
    show_channels(asked, "stem", tmp_path / "out.png")
    assert len(drawn["kept"]) == 4
    assert "as blocks.0.conv1 reads them" in drawn["subtitle"]
    for name in ("blocks.1.conv1", "blocks.2.conv1"):
        show_channels(asked, name, tmp_path / "out.png", width="50%")
    assert len(list((tmp_path / "cache" / "rankings").iterdir())) == 2


class Sets:
    """A ranking whose kept sets are not nested: 3 is only in the narrowest."""

    criterion = "sets"

    def keep(self, group, width):
        return {1: (3,), 2: (0, 1), 3: (0, 1, 2)}.get(width, tuple(range(width)))


def test_where_sets_are_not_nested_the_kept_one_is_that_of_the_width():
    group = find_groups(tiny.network(widths=(4, 4)), torch.zeros(1, 1, 8, 8))["first"]
    assert module._by_rank(Sets(), group, 1) == ([3], [0, 1, 2])
    assert module._by_rank(Sets(), group, 3) == ([0, 1, 2], [3])


def test_an_output_is_replaced_only_when_told(call, refused, file, tmp_path):
    output, experiment = tmp_path / "out.png", file()
    call("baseline", experiment)
    output.write_text("mine")
    command = ("show-channels", experiment, "--group", "first", "-o", output)
    assert "out.png: exists; name another file with --output, or pass --force" in refused(*command)
    assert call(*command, "--force")[0] == 0
    assert output.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--group", "frist"], "unknown channel group 'frist'; did you mean 'first'?"),
        (["--group", "first", "--criterion", "fpgn"], "unknown criterion 'fpgn'; did you mean 'fpgm'?"),
        (["--group", "first", "--width", "half"], "--width: expected a share between 0% and 100%"),
        (["--group", "first", "--width", "8"], "--width: expected 1 to 7 of the 8 channels of first, or a share"),
        (["--group", "first", "--width", "0"], "--width: expected 1 to 7"),
        (["--group", "first", "--images", "0"], "'--images'"),
        ([], "Missing option '--group'"),
    ],
)
def test_mistakes_are_one_line(refused, file, tmp_path, arguments, reason):
    assert reason in refused("show-channels", file(), *arguments, "-o", tmp_path / "out.png")


def test_an_image_that_cannot_be_read_is_one_line(call, file, tmp_path):
    command = (
        "show-channels",
        file(),
        "--group",
        "first",
        "--image",
        tmp_path / "none.png",
        "-o",
        tmp_path / "out.png",
    )
    code, _, complaint = call(*command)
    assert (code, complaint.count("\n")) == (2, 1)
    assert "none.png: expected a readable image, got FileNotFoundError" in complaint
    assert not (tmp_path / "out.png").exists()
