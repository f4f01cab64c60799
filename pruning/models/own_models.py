"""Networks of the user: a function by `package.module:function`, or an entry point of an installed package."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from pruning.errors import ModelError, OptionError, UnknownNameError
from pruning.models.family import ModelFamily

ENTRY_POINTS = "prunesearch.models"


def function_family(name: str) -> ModelFamily:
    """Return the network that the function `package.module:function` builds. This imports, that is, runs the module.

    Raises:
        ModelError: not of that form, or the module cannot be imported.
        UnknownNameError: the module has no such function.
    """
    place, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*place.split("."), function)):
        raise ModelError(f"model '{name}': expected package.module:function")
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        raise ModelError(f"model '{name}': {error}") from error
    if not hasattr(module, function):
        known = (f"{place}:{found}" for found, value in vars(module).items() if callable(value))
        raise UnknownNameError("model", name, known)
    return _family(name, getattr(module, function))


def plug_ins() -> dict[str, EntryPoint]:
    """Return the networks that installed packages offer, by name."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def plug_in_family(entry: EntryPoint) -> ModelFamily:
    """Return the network that an entry point builds.

    Raises:
        ModelError: what it names cannot be imported.
    """
    try:
        factory = entry.load()
    except (ImportError, AttributeError) as error:
        raise ModelError(f"model '{entry.name}' of entry point '{entry.value}': {error}") from error
    return _family(entry.name, factory)


def _family(name: str, factory: Any) -> ModelFamily:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        raise ModelError(f"model '{name}': expected a Python function or class, got {factory!r}") from None
    shape, groups = getattr(factory, "input_shape", None), getattr(factory, "paper_groups", ())
    return ModelFamily(partial(_build, name, factory, signature), shape, groups)


def _build(name: str, factory: Callable[..., nn.Module], signature: inspect.Signature, /, **options: Any) -> nn.Module:
    try:
        signature.bind(**options)
    except TypeError as error:
        raise OptionError(f"model '{name}': {error}; it takes {signature}") from None
    return factory(**options)
