"""Images to train, choose and test on: one file a source, three disjoint splits each."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import ValidationError

from pruning.data.images import ImageData, ImageSplit, TensorSplit
from pruning.data.pixels import Pixels
from pruning.data.streaming import StreamedSplit
from pruning.errors import DataError, OptionError
from pruning.registry import Registry, check_options, find_function

DATA: Registry[ImageData] = Registry("data source", "pruning.data")
register = DATA.register

__all__ = ["DATA", "ImageData", "ImageSplit", "Pixels", "StreamedSplit", "TensorSplit", "load_data", "register"]


def load_data(name: str, /, **options: Any) -> ImageData:
    """Load the images of a registered source, or of a function of the caller's.

    Args:
        name: a name of `DATA.names()`, or `module:function` for a function that returns an `ImageData`.
        options: what the source takes; see its own documentation.

    Raises:
        UnknownNameError: no source, or no function of that module, has this name.
        OptionError: an option that the source does not have, or a value it cannot take.
        DataError: the images are missing, cannot be read or do not fit together.
    """
    if ":" in name:
        return _load_own(name, options)
    try:
        return DATA.build(name, **options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, rule = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Input should be ")
        raise OptionError(f"data source '{name}', {place}: expected {rule}, got {first['input']!r}") from None


def _load_own(name: str, options: dict[str, Any]) -> ImageData:
    function = find_function("data source", name, DataError)
    check_options(f"data source '{name}'", function, options)
    data = function(**options)
    if not isinstance(data, ImageData):
        raise DataError(f"data source '{name}': expected an ImageData, got {type(data).__name__}")
    for part in ("train", "val", "test"):
        _check_split(f"data source '{name}', {part}", data, getattr(data, part))
    return data


def _check_split(place: str, data: ImageData, split: ImageSplit) -> None:
    """Look at the first batch: what is wrong with a hand-made split shows there."""
    if len(split) == 0:
        raise DataError(f"{place}: expected images, got none")
    images, labels = next(iter(split.batches(2)))
    if tuple(images.shape[1:]) != data.image_shape or images.dtype != torch.float32:
        got = f"{tuple(images.shape[1:])} of {images.dtype}"
        raise DataError(f"{place}: expected images of shape {data.image_shape}, torch.float32, got {got}")
    if labels.dtype != torch.int64 or not bool(((labels >= 0) & (labels < len(data.classes))).all()):
        got = f"{labels.tolist()} of {labels.dtype}"
        raise DataError(f"{place}: expected labels from 0 to {len(data.classes) - 1}, torch.int64, got {got}")
