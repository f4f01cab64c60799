"""Networks of the user: a function by `package.module:function`, or an entry point of an installed package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from pruning.errors import ModelError
from pruning.models.family import ModelFamily
from pruning.registry import check_options, find_function

ENTRY_POINTS = "prunesearch.models"


def function_family(name: str) -> ModelFamily:
    """Return the network that the function `package.module:function` builds. This imports, that is, runs the module.

    Raises:
        ModelError: not of that form, no function, or the module cannot be imported.
        UnknownNameError: the module has no such function.
    """
    return _family(name, find_function("model", name, ModelError))


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
    except Exception as error:  # whatever its module raises while it runs
        raise ModelError(f"model '{entry.name}' of entry point '{entry.value}': {error}") from error
    return _family(entry.name, factory)


def _family(name: str, factory: Callable[..., Any]) -> ModelFamily:
    shape, groups = getattr(factory, "input_shape", None), getattr(factory, "paper_groups", ())
    return ModelFamily(partial(_build, name, factory), shape, groups)


def _build(name: str, factory: Callable[..., nn.Module], /, **options: Any) -> nn.Module:
    check_options(f"model '{name}'", factory, options)
    return factory(**options)
