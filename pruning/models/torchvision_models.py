"""torchvision's classification networks by their own names, always randomly initialised."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from pruning.errors import OptionError
from pruning.models.family import ModelFamily, Shape
from pruning.models.torchvision_import import import_torchvision
from pruning.models.vgg_cifar import CONVOLUTIONS, all_but_last

_BASIC = ("layer?.*.conv1",)
_BOTTLENECK = ("layer?.*.conv1", "layer?.*.conv2")
PAPER_GROUPS: dict[str, tuple[str, ...]] = {
    "resnet18": _BASIC,
    "resnet34": _BASIC,
    "resnet50": _BOTTLENECK,
    "resnet101": _BOTTLENECK,
    "resnet152": _BOTTLENECK,
    "mobilenet_v2": ("features.*.conv.0.0",),
    **{f"vgg{depth}_bn": all_but_last(depth) for depth in CONVOLUTIONS},
}


def torchvision_names() -> tuple[str, ...]:
    """Return the names of torchvision's classification networks."""
    models = import_torchvision().models
    return tuple(models.list_models(module=models))


def torchvision_family(name: str) -> ModelFamily:
    """Return the torchvision network with that name."""
    return ModelFamily(partial(_build, name), _input_shape(name), PAPER_GROUPS.get(name, ()))


def _build(name: str, /, *, num_classes: int, **options: Any) -> nn.Module:
    if "weights" in options:
        raise OptionError(f"model '{name}', weights: expected a checkpoint beside the model, got an option of it")
    if name in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", False)  # its truncated normal takes half a minute
    try:
        model = import_torchvision().models.get_model(name, weights=None, num_classes=num_classes, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise OptionError(f"model '{name}': {error}") from None
    assert isinstance(model, nn.Module)
    return model


def _input_shape(name: str) -> Shape:
    """The smallest size that published weights are for: what the network takes without further options."""
    weights = import_torchvision().models.get_model_weights(name)
    sizes = [weight.transforms().crop_size[0] for weight in weights]
    return (3, min(sizes), min(sizes))
