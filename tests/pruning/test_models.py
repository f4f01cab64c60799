import sys

import pytest
import torch
from torch import fx, nn

from pruning.errors import ModelError, OptionError, UnknownNameError
from pruning.finding import find_groups
from pruning.layers import ChannelPad
from pruning.models import MODELS, build_model, input_shape, model_names, paper_groups
from pruning.models.torchvision_models import PAPER_GROUPS
from pruning.policy import ModelSpec

GROUPS = {
    "resnet20": 9,
    "resnet32": 15,
    "resnet44": 21,
    "resnet56": 27,
    "resnet110": 54,
    "preresnet56": 27,
    "vgg16_bn_cifar": 12,
    "vgg19_bn_cifar": 15,
    "mobilenet_v1": 13,
    "mobilenet_v1_cifar": 12,
    "mobilenet_v2_expand": 17,
    "mobilenet_v2_cifar": 17,
    "googlenet_cifar": 27,
    "resnet18": 8,
    "resnet34": 16,
    "resnet50": 32,
    "mobilenet_v2": 16,
    "vgg11_bn": 7,
    "vgg13_bn": 9,
    "vgg16_bn": 12,
    "vgg19_bn": 15,
}

NARROW = [
    ("resnet20", {"widths": [5, 6, 9], "inner_widths": [3, 4, 7, 8, 10, 11, 12, 13, 15]}),
    ("preresnet56", {"widths": [5, 6, 9], "inner_widths": [*range(3, 30)]}),
    ("vgg16_bn_cifar", {"widths": [*range(3, 16)]}),
    ("mobilenet_v1_cifar", {"widths": [*range(3, 17)]}),
    ("mobilenet_v2_cifar", {"widths": [*range(3, 12)], "inner_widths": [*range(5, 22)]}),
    ("googlenet_cifar", {"stem_width": 5, "widths": [[3, 4, 5, 6, 7, 8, 9]] * 9}),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(name, num_classes=10, **options):
    return build_model(ModelSpec(name=name, num_classes=num_classes, options=options))


@pytest.mark.parametrize("name", MODELS.names())
def test_a_registered_network_maps_its_usual_images_to_logits(name):
    spec = ModelSpec(name=name, num_classes=7, options={"in_channels": 2})
    with torch.device("meta"):
        model, images = build_model(spec), torch.empty(2, *input_shape(spec))
    assert model.training
    assert images.shape[1] == 2
    assert model(images).shape == (2, 7)


@pytest.mark.parametrize("name", [*MODELS.names(), *sorted(PAPER_GROUPS.keys() - {"resnet101", "resnet152"})])
def test_the_papers_groups_are_inner_groups_of_the_network(name):
    spec = ModelSpec(name=name)
    with torch.device("meta"):
        model, image = build_model(spec), torch.empty(1, *input_shape(spec))
    groups = find_groups(model, image)
    chosen = groups.matching(paper_groups(spec))
    assert len(chosen) == GROUPS[name]
    assert not any(groups[group].coupled for group in chosen)


class Tracer(fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, ChannelPad) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize(("name", "options"), NARROW)
def test_the_graph_holds_no_channel_count_and_no_image_size(name, options):
    """So the graph of the full network runs the layers of a narrow one, also on larger images."""
    narrow = build(name, **options).eval()
    crossed = fx.GraphModule(narrow, Tracer().trace(build(name)))
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(crossed(images), narrow(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet20", "preresnet56", "vgg16_bn_cifar", "mobilenet_v2_cifar", "googlenet_cifar"])
def test_networks_for_small_images_take_16_pixels(name):
    assert build(name)(torch.rand(2, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize("name", ["resnet20", "mnasnet0_5"])
def test_equal_seeds_build_equal_networks(name):
    first = build(name).state_dict()
    torch.manual_seed(0)
    for key, value in build(name).state_dict().items():
        assert torch.equal(first[key], value)


def test_names_are_ours_and_torchvisions():
    assert {"resnet56", "vgg19_bn_cifar", "vgg19_bn", "resnet18", "inception_v3"} < set(model_names())
    assert set(MODELS.names()) < set(model_names())


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_built(name):
    with torch.device("meta"):
        model = build(name, num_classes=7)
    assert {head.shape[0] for key, head in model.named_parameters() if key.endswith(("fc.bias", "fc2.bias"))} == {7}
    assert model.aux_logits


@pytest.mark.parametrize(
    ("name", "size"), [("resnet50", 224), ("inception_v3", 299), ("efficientnet_b1", 240), ("vit_h_14", 224)]
)
def test_torchvision_networks_have_the_size_they_were_published_for(name, size):
    assert input_shape(ModelSpec(name=name)) == (3, size, size)


def test_no_rule_is_made_up_where_the_papers_have_none():
    assert paper_groups(ModelSpec(name="densenet121")) == ()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet55", "resnet56"), ("vgg19_bn_cifr", "vgg19_bn_cifar"), ("mobilnet_v3_large", "mobilenet_v3_large")],
)
def test_an_unknown_name_is_told_with_the_nearest(name, nearest):
    with pytest.raises(UnknownNameError, match=f"unknown model '{name}'; did you mean '{nearest}'"):
        build(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet20",
            {"inner_width": [4]},
            "model 'resnet20': unknown option 'inner_width'; did you mean 'inner_widths'",
        ),
        ("resnet20", {"inner_widths": []}, "inner_widths: expected 9 whole numbers of at least 1, got \\[\\]"),
        ("resnet20", {"widths": [4, 8, 0]}, "widths: expected 3 whole numbers"),
        ("resnet20", {"widths": 4}, "widths: expected 3 whole numbers"),
        ("resnet20", {"widths": [4, 8, 6]}, "no stage narrower than the last"),
        ("preresnet56", {"inner_widths": [4]}, "model 'preresnet56', inner_widths: expected 27"),
        ("vgg19_bn_cifar", {"widths": [4]}, "model 'vgg19_bn_cifar', widths: expected 16"),
        ("mobilenet_v1", {"widths": [4.5] * 14}, "widths: expected 14 whole numbers"),
        ("mobilenet_v2_cifar", {"inner_widths": [4]}, "inner_widths: expected 17"),
        ("googlenet_cifar", {"widths": [[4] * 7]}, "widths: expected 9 rows, got 1"),
        ("googlenet_cifar", {"widths": [[4] * 6] * 9}, "widths of a3: expected 7 whole numbers"),
        ("resnet18", {"widht": 4}, "model 'resnet18': .*unexpected keyword argument 'widht'"),
        ("resnet18", {"weights": "DEFAULT"}, "expected a checkpoint beside the model"),
    ],
)
def test_a_wrong_option_is_told_with_its_place(name, options, message):
    with pytest.raises(OptionError, match=message):
        build(name, **options)


def test_the_class_count_is_no_option():
    with pytest.raises(OptionError, match="model 'resnet20': expected num_classes beside the options"):
        build_model(ModelSpec(name="resnet20", options={"num_classes": 3}))


OWN = """
from torch import nn

class Net(nn.Sequential):
    input_shape = (1, 8, 8)
    paper_groups = ("0",)

    def __init__(self, num_classes, width=4, in_channels=1):
        super().__init__(nn.Conv2d(in_channels, width, 8), nn.Flatten(), nn.Linear(width, num_classes))

def plain(num_classes):
    return Net(num_classes).eval()

def nothing(num_classes):
    return num_classes

broken = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's, `own_networks`, and an installed package that offers networks."""
    (tmp_path / "own_networks.py").write_text(OWN)
    (tmp_path / "own_faulty.py").write_text("width = widht")
    installed = tmp_path / "own-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    lines = [
        "net = own_networks:Net",
        "resnet56 = own_networks:Net",
        "alexnet = own_networks:Net",
        "gone = nowhere:Net",
        "faulty = own_faulty:Net",
    ]
    (installed / "entry_points.txt").write_text("\n".join(["[prunesearch.models]", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_networks", None)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("name", ["own_networks:Net", "net"])
def test_a_users_network_brings_its_own_facts(name):
    spec = ModelSpec(name=name, num_classes=3, options={"width": 5, "in_channels": 2})
    assert input_shape(spec) == (2, 8, 8)
    assert paper_groups(spec) == ("0",)
    model = build_model(spec)
    assert model[0].out_channels == 5
    assert model(torch.rand(2, *input_shape(spec))).shape == (2, 3)


@pytest.mark.usefixtures("own")
def test_a_users_network_needs_no_facts_but_then_has_no_usual_size():
    spec = ModelSpec(name="own_networks:plain")
    assert build_model(spec).training
    assert paper_groups(spec) == ()
    with pytest.raises(ModelError, match="model 'own_networks:plain': expected an attribute input_shape"):
        input_shape(spec)


@pytest.mark.usefixtures("own")
def test_an_installed_package_cannot_take_a_known_name():
    assert isinstance(build("resnet56").layer1, nn.Sequential)
    assert type(build("alexnet")).__name__ == "AlexNet"
    assert "net" in model_names()
    with pytest.raises(UnknownNameError, match="did you mean 'net'"):
        build("nett")


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (
            "own_networks:Nett",
            {},
            UnknownNameError,
            "unknown model 'own_networks:Nett'; did you mean 'own_networks:Net'",
        ),
        ("own_networks:Net", {"widht": 3}, OptionError, "unexpected keyword argument 'widht'; it takes .*width=4"),
        ("own_networks:nothing", {}, ModelError, "expected a torch.nn.Module, got int"),
        ("own_networks:broken", {}, ModelError, "expected a function 'broken' in 'own_networks', got 3"),
        ("own_netwrks:Net", {}, ModelError, "model 'own_netwrks:Net': cannot import 'own_netwrks': No module named"),
        ("own_networks:", {}, ModelError, "expected package.module:function"),
        ("faulty", {}, ModelError, "model 'faulty' of entry point 'own_faulty:Net': name 'widht' is not defined"),
        ("gone", {}, ModelError, "model 'gone' of entry point 'nowhere:Net': No module named 'nowhere'"),
    ],
)
def test_a_users_mistake_is_told(name, options, error, message):
    with pytest.raises(error, match=message):
        build(name, **options)
