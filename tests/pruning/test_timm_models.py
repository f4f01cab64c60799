"""Networks of timm by name."""

import re
import sys
from importlib.util import find_spec

import pytest
import torch

from pruning.errors import ModelError, OptionError, UnknownNameError
from pruning.finding import find_groups
from pruning.models import build_model, input_shape, model_names, paper_groups, timm_names
from pruning.policy import ModelSpec

installed = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


def spec(name, num_classes=7, **options):
    return ModelSpec(name=name, num_classes=num_classes, options=options)


@installed
def test_a_network_has_the_classes_and_the_channels_that_were_asked_for():
    asked = spec("timm/skresnet18", in_channels=1)
    assert input_shape(asked) == (1, 224, 224)
    assert paper_groups(asked) == ()
    network = build_model(asked)
    assert network.training
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 7)
    assert len(find_groups(network, torch.zeros(2, 1, 64, 64))) > 8


@installed
@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 160), ("inception_v4", 299), ("resnetv2_50x1_bit.goog_in21k_ft_in1k", 448)]
)
def test_images_have_the_size_that_the_weights_are_for(name, size):
    assert input_shape(spec(f"timm/{name}")) == (3, size, size)


@installed
def test_weights_are_random_and_nothing_is_fetched(monkeypatch):
    def fetch(*_, **__):
        raise AssertionError("fetches weights")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fetch)
    first, second = build_model(spec("timm/test_resnet")), build_model(spec("timm/test_resnet"))
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


@installed
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("timm/skresnet81", "timm/skresnet18"),
        ("timm/resnet50.a1_in1", "timm/resnet50.a1_in1k"),
        ("timm/hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name, nearest):
    with pytest.raises(UnknownNameError, match=f"unknown model '{name}'; did you mean '{nearest}'"):
        build_model(spec(name))


@installed
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, "model 'timm/test_resnet': .* unexpected keyword argument 'widht'"),
        ({"in_chans": 1}, "in_chans: expected it as in_channels"),
        ({"pretrained": True}, "model 'timm/test_resnet', pretrained: expected a checkpoint beside the model"),
        ({"checkpoint_path": "weights.pth"}, "checkpoint_path: expected a checkpoint beside the model"),
        ({"block_args": {"attn_layer": "sse"}}, "model 'timm/test_resnet': expected other options"),
    ],
)
def test_a_wrong_option_is_told_with_its_place(options, message):
    with pytest.raises(OptionError, match=message):
        build_model(spec("timm/test_resnet", **options))


@installed
def test_a_network_larger_than_memory_is_refused():
    with pytest.raises(ModelError, match=re.escape("expected at most 1,073,741,824 parameters")):
        build_model(spec("timm/vit_giant_patch14_dinov2"))


@installed
def test_names_are_told_by_themselves():
    assert "timm/skresnet18" in timm_names()
    assert not any(name.startswith("timm/") for name in model_names())


def test_without_timm_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for ask in (timm_names, lambda: build_model(spec("timm/skresnet18"))):
        with pytest.raises(ModelError, match=re.escape("timm is not installed: pip install 'prunesearch[timm]'")):
            ask()
