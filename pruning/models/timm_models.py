"""timm's networks, `timm/NAME`, where timm is installed; always randomly initialised."""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from pruning.errors import ModelError, OptionError, UnknownNameError
from pruning.models.family import ModelFamily
from pruning.models.torchvision_import import import_torchvision

PREFIX = "timm/"
_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def timm_names() -> tuple[str, ...]:
    """Return the names of timm's networks, more than a thousand; each may have a tag of its weights behind a dot.

    Raises:
        ModelError: timm is not installed.
    """
    return tuple(PREFIX + name for name in _import_timm().list_models())


def timm_family(name: str) -> ModelFamily:
    """Return timm's network with that name, which begins with `timm/`; the tag of weights tells the size of images.

    Raises:
        UnknownNameError: with the nearest name.
        ModelError: timm is not installed.
    """
    timm, architecture = _import_timm(), name.removeprefix(PREFIX)
    try:
        known = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    except RuntimeError:
        tagged = "." in architecture
        names = (PREFIX + other for other in timm.list_models(pretrained=tagged))
        raise UnknownNameError("model", name, names) from None
    return ModelFamily(partial(_build, name), tuple(known.input_size))


def _build(name: str, /, *, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    for option in _WEIGHTS:
        if option in options:
            raise OptionError(f"model '{name}', {option}: expected a checkpoint beside the model, got an option of it")
    if "in_chans" in options:
        raise OptionError(f"model '{name}', in_chans: expected it as in_channels")
    architecture = name.removeprefix(PREFIX)
    model = _import_timm().create_model(architecture, num_classes=num_classes, in_chans=in_channels, **options)
    assert isinstance(model, nn.Module)
    return model


def _import_timm() -> ModuleType:
    import_torchvision()  # timm imports it, too
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ModelError(f"models {PREFIX}…: timm is not installed: pip install 'prunesearch[timm]'") from None
