"""Networks by name: the papers' for small images, torchvision's, timm's, and the user's own."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from pruning.errors import ModelError, OptionError, PruningError, UnknownNameError
from pruning.limits import MANY_CLASSES, MOST_CLASSES, counted_parameters
from pruning.models.family import FAMILIES, MODELS, ModelFamily, Shape, register
from pruning.models.own_models import function_family, plug_in_family, plug_ins
from pruning.models.timm_models import PREFIX as TIMM
from pruning.models.timm_models import timm_family, timm_names
from pruning.models.torchvision_models import torchvision_family, torchvision_names
from pruning.policy import ModelSpec

__all__ = [
    "MODELS",
    "ModelFamily",
    "build_model",
    "check_trusted",
    "input_shape",
    "model_names",
    "paper_groups",
    "register",
    "timm_names",
]


def build_model(spec: ModelSpec) -> nn.Module:
    """Build a network: randomly initialised, in train mode.

    The name is one of `model_names()`, `timm/NAME` for a network of timm, or `package.module:function`: a function of
    the user's that takes `num_classes` and the options, and may carry the attributes `input_shape` and `paper_groups`.
    Such a name runs the module that it speaks of, so it must come from somebody trusted; see `check_trusted`.

    Raises:
        UnknownNameError: with the nearest name.
        OptionError: an option that the network does not take, or a value that it refuses.
        ModelError: what was built is not a network, its module cannot be imported, timm is not installed, or one that
            is not the user's would be larger than memory.
    """
    if "num_classes" in spec.options:
        raise OptionError(f"model '{spec.name}': expected num_classes beside the options, got it among them")
    if spec.num_classes > MOST_CLASSES:
        raise ModelError(f"model '{spec.name}': expected at most {MOST_CLASSES:,} classes, got {spec.num_classes}")
    family, told = find_family(spec.name), {"num_classes": spec.num_classes, **spec.options}
    known_size = not (spec.options or spec.name.startswith(TIMM)) and spec.num_classes <= MANY_CLASSES
    usual = ":" in spec.name or known_size
    model: Any = family.build(**told) if usual else _build_within_limits(spec, family)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model '{spec.name}': expected a torch.nn.Module, got {type(model).__name__}")
    return model.train()


def _build_within_limits(spec: ModelSpec, family: ModelFamily) -> Any:
    """Build a network without values first: it may ask for more of them than there is memory."""
    place, told = f"model '{spec.name}'", {"num_classes": spec.num_classes, **spec.options}
    try:
        # What it refuses without values it refuses again; and some look at values.
        with (
            suppress(TypeError, RuntimeError),
            torch.random.fork_rng([]),
            torch.device("meta"),
            counted_parameters(place),
        ):
            family.build(**told)
        return family.build(**told)
    except PruningError:
        raise
    except Exception as error:  # ours check the names of options, not everything that they can be
        raise OptionError(f"{place}: expected other options than {spec.options}: {error}") from error


def check_trusted(spec: ModelSpec, trusted: Collection[str]) -> None:
    """Refuse a network out of a file whose name, `package.module:function`, would run code that only the file names.

    Raises:
        ModelError: it is not among the `trusted` names.
    """
    if ":" in spec.name and spec.name not in trusted:
        raise ModelError(
            f"model '{spec.name}': named by a file, and building it runs code; if you trust it, name it with "
            f"--trust {spec.name}, or name an experiment of this network (in Python: trusted=['{spec.name}'])"
        )


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
    channels = spec.options.get("in_channels", channels)
    if not isinstance(channels, int) or channels < 1:
        raise OptionError(f"model '{spec.name}', in_channels: expected a number of at least 1, got {channels!r}")
    return (channels, height, width)


def paper_groups(spec: ModelSpec) -> tuple[str, ...]:
    """Return shell patterns of the channel groups that the papers cut, empty where no rule is known.

    Raises:
        UnknownNameError: with the nearest name.
    """
    return find_family(spec.name).paper_groups


def model_names() -> tuple[str, ...]:
    """Return every name that can be built, sorted: registered, torchvision's and those of installed packages.

    Timm's, more than all these, are told by `timm_names`.
    """
    return tuple(sorted({*MODELS.names(), *torchvision_names(), *plug_ins()}))


def find_family(name: str) -> ModelFamily:
    """Return the network of that name; an installed package cannot take one of ours, of torchvision's or of timm's.

    Raises:
        UnknownNameError: with the nearest name.
        ModelError: a user's module that cannot be imported, or timm is not installed.
    """
    if name in MODELS.names():
        return FAMILIES[name]
    if name.startswith(TIMM):
        return timm_family(name)
    if ":" in name:
        return function_family(name)
    if name in torchvision_names():
        return torchvision_family(name)
    if name in plug_ins():
        return plug_in_family(plug_ins()[name])
    raise UnknownNameError("model", name, model_names())
