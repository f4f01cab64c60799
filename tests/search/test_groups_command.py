"""A network's groups and what is pinned, as data and on the command line."""

import pytest
import tiny
import torch

from pruning import ModelSpec, build_model, count_cost, layout_of
from search.groups import group_rows, groups_lines, network_of, pinned_rows


def test_shares_of_the_macs_are_those_of_the_layers_that_make_the_channels():
    network = layout_of(ModelSpec(name="tiny:network"), tiny.IMAGE_SHAPE)
    first, second, classes = 8 * 8 * 9 * 8, 4 * 4 * 9 * 8 * 16, 16 * 10
    assert [row.macs for row in group_rows(network)] == [first / 23200, second / 23200]
    assert [(row.layer, row.width, row.macs) for row in pinned_rows(network)] == [("classifier", 10, classes / 23200)]


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "resnext50_32x4d", "densenet121", "googlenet"])
def test_shares_of_the_macs_add_up_to_one(name):
    network = layout_of(ModelSpec(name=name), (3, 64, 64))
    total = sum(row.macs for row in (*group_rows(network), *pinned_rows(network)))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_a_row_says_how_many_filters_go_with_a_channel():
    network = layout_of(ModelSpec(name="resnext50_32x4d"), (3, 64, 64))
    rows = {row.name: row for row in group_rows(network)}
    assert (rows["layer1.0.conv1"].width, rows["layer1.0.conv1"].step) == (32, 4)
    assert (rows["layer1.0.conv3"].width, rows["layer1.0.conv3"].step, rows["layer1.0.conv3"].coupled) == (256, 1, True)
    assert rows["layer1.0.conv3"].makers == (
        *("layer1.0.conv3", "layer1.0.downsample.0"),
        *("layer1.1.conv3", "layer1.2.conv3"),
    )
    assert rows["layer1.0.conv3"].readers[:2] == ("layer1.1.conv1", "layer1.2.conv1")


def test_the_command_shows_groups_pinned_channels_and_totals(call):
    code, text, complaint = call("groups", "resnet20", "--num-classes", "7")
    assert (code, complaint) == (0, "")
    lines = text.splitlines()
    assert lines[1].split() == ["conv1", "16", "1", "1", "coupled", "31.6", "%", "10", "layer1.0.conv1", "+9"]
    assert lines[14].split() == ["pinned", "channels", "MACs", "why"]
    assert lines[15].split()[:4] == ["linear", "7", "0.0", "%"]
    assert "network's output" in lines[15]
    assert "network  resnet20, 7 classes" in lines
    assert "groups   12, 3 coupled; they make 100.0 % of the MACs" in lines
    assert "pinned   7 channels, 0.0 % of the MACs" in lines
    half = count_cost(build_model(half_wide()), torch.zeros(1, 3, 32, 32))
    assert f"→ {half.macs:,} (" in text
    assert not [line for line in lines if len(line) > 100]


def half_wide():
    options = {"widths": [8, 16, 32], "inner_widths": [8, 8, 8, 16, 16, 16, 32, 32, 32]}
    return ModelSpec(name="resnet20", num_classes=7, options=options)


def test_full_tells_every_layer(call):
    text = call("groups", "resnet20", "--full")[1]
    assert "layer1.0.conv1, layer1.1.conv1, layer1.2.conv1, layer2.0.conv1" in text


def test_an_experiment_tells_network_and_images(file):
    network = network_of(str(file()), None, None)
    assert network.model.name == "tiny:network"
    assert network.cost.full.macs == 23200
    assert network_of(str(file()), None, "1x16x16").cost.full.macs > 23200


def test_the_size_of_an_image_counts():
    small, usual = (network_of("resnet20", None, shape) for shape in ("3x16x16", None))
    assert usual.cost.full.macs == pytest.approx(4 * small.cost.full.macs, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet202"], "unknown model 'resnet202'; did you mean 'resnet20'?"),
        (["resnet20", "--input-shape", "32x32"], "--input-shape: expected channels, height and width"),
        (["resnet20", "--input-shape", "3x0x32"], "--input-shape: expected channels, height and width"),
        (["resnet20", "--set", "seed=1"], "--set seed=1: expected an experiment that it changes, got none"),
        (["{name: [}"], "MODEL: expected a name, or {name: …, options: {…}}, got '{name: [}'"),
        (["none.yaml"], "none.yaml: No such file"),
    ],
)
def test_a_mistake_is_one_line(refused, arguments, message):
    assert message in refused("groups", *arguments)


def test_an_experiment_says_itself_how_many_classes(refused, file):
    assert "--num-classes: expected a network by name with it" in refused("groups", file(), "--num-classes", "7")


def test_what_traced_the_network_is_said() -> None:
    assert groups_lines(layout_of(ModelSpec(name="resnet20")))["traced"] == "by torch.fx"
