"""Networks by name: the papers' for small images, torchvision's, and the user's own."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruning.errors import ModelError, OptionError, UnknownNameError
from pruning.models.family import FAMILIES, MODELS, ModelFamily, Shape, register
from pruning.models.own_models import function_family, plug_in_family, plug_ins
from pruning.models.torchvision_models import torchvision_family, torchvision_names
from pruning.policy import ModelSpec

__all__ = ["MODELS", "ModelFamily", "build_model", "input_shape", "model_names", "paper_groups", "register"]


def build_model(spec: ModelSpec) -> nn.Module:
    """Build a network: randomly initialised, in train mode.

    The name is one of `model_names()`, or `package.module:function`: a function of the user's that takes `num_classes`
    and the options, and may carry the attributes `input_shape` and `paper_groups`. Such a name runs the module that it
    speaks of, so it must come from somebody trusted.

    Raises:
        UnknownNameError: with the nearest name.
        OptionError: an option that the network does not take, or a value that it refuses.
        ModelError: what was built is not a network, or its module cannot be imported.
    """
    if "num_classes" in spec.options:
        raise OptionError(f"model '{spec.name}': expected num_classes beside the options, got it among them")
    model: Any = find_family(spec.name).build(num_classes=spec.num_classes, **spec.options)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model '{spec.name}': expected a torch.nn.Module, got {type(model).__name__}")
    return model.train()


def input_shape(spec: ModelSpec) -> Shape:
    """Return the usual size of one image, (channels, height, width).

    Raises:
        UnknownNameError: with the nearest name.
        ModelError: a user's network without the attribute `input_shape`.
    """
    shape = find_family(spec.name).input_shape
    if shape is None:
        raise ModelError(f"model '{spec.name}': expected an attribute input_shape of what builds it, got none")
    channels, height, width = shape
    return (spec.options.get("in_channels", channels), height, width)


def paper_groups(spec: ModelSpec) -> tuple[str, ...]:
    """Return shell patterns of the channel groups that the papers cut, empty where no rule is known.

    Raises:
        UnknownNameError: with the nearest name.
    """
    return find_family(spec.name).paper_groups


def model_names() -> tuple[str, ...]:
    """Return every name that can be built, sorted: registered, torchvision's and those of installed packages."""
    return tuple(sorted({*MODELS.names(), *torchvision_names(), *plug_ins()}))


def find_family(name: str) -> ModelFamily:
    """Return the network of that name; an installed package cannot take one of ours or of torchvision's.

    Raises:
        UnknownNameError: with the nearest name.
        ModelError: a user's module that cannot be imported.
    """
    if name in MODELS.names():
        return FAMILIES[name]
    if ":" in name:
        return function_family(name)
    if name in torchvision_names():
        return torchvision_family(name)
    if name in plug_ins():
        return plug_in_family(plug_ins()[name])
    raise UnknownNameError("model", name, model_names())
