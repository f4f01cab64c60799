"""What is known of a network before it is built, and the registry of the networks that this package brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import nn

from pruning.registry import Registry

Shape = tuple[int, int, int]
"""One image: (channels, height, width)."""

F = TypeVar("F", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class ModelFamily:
    """A network that can be built by name.

    Attributes:
        build: takes `num_classes` and the network's options; refuses others with an OptionError.
        input_shape: the usual size of one image; None where nobody said.
        paper_groups: shell patterns of the channel groups that the papers cut; empty where no rule is known.
    """

    build: Callable[..., nn.Module]
    input_shape: Shape | None = None
    paper_groups: tuple[str, ...] = ()


MODELS: Registry[nn.Module] = Registry("model", "pruning.models")
FAMILIES: dict[str, ModelFamily] = {}
"""The entries of `MODELS` with what is known of them."""


def register(*names: str, input_shape: Shape, paper_groups: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Return a decorator that registers what builds a network: it takes `num_classes` and the network's options.

    Args:
        names: one or more names.
        input_shape: the usual size of one image, (channels, height, width).
        paper_groups: shell patterns of the channel groups that the papers cut.
    """

    def decorate(build: F) -> F:
        MODELS.register(*names)(build)
        for name in names:
            FAMILIES[name] = ModelFamily(partial(MODELS.build, name), input_shape, paper_groups)
        return build

    return decorate
