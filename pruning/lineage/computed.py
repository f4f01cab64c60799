"""Layers whose weight is computed at each call: weight norm in either of torch's forms, and parametrisations.

What is cut is the tensor that the weight is computed of. Of weight norm a cut rescales the gains, so that what is left
of each filter stays as it is. Of any other parametrisation it is tried along which axes it lets itself be cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from pruning.lineage.trial import filled

_PARAMETRISED = ".parametrizations."


@dataclass(frozen=True)
class Source:
    """What the weight of a layer is computed of.

    Attributes:
        tensor: name inside the layer of the tensor shaped like the weight; `weight`, where nothing is computed.
        axes: along which it may be cut.
        gain: of weight norm the name of the filters' lengths.
        along: the axis that has a length for each of its entries; None: there is a single one.
    """

    tensor: str = "weight"
    axes: frozenset[int] = frozenset((0, 1))
    gain: str | None = None
    along: int | None = None


def layer_of(tensor: str) -> str:
    """Return the layer that a parameter, a buffer or an attribute belongs to, by its qualified name."""
    owner, parametrised, _ = tensor.partition(_PARAMETRISED)
    return owner if parametrised else tensor.rpartition(".")[0]


def source_of(layer: nn.Module) -> Source | None:
    """Return what the weight of a convolution or a linear layer is computed of, or None where that cannot be cut."""
    if not _plain(layer, "bias"):
        return None
    if _plain(layer, "weight"):
        return Source()
    if _has_weight_norm(layer):
        return Source("weight_v", gain="weight_g", along=_along(layer))
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    steps: Any = layer.parametrizations["weight"]  # type: ignore[index]
    place = "parametrizations.weight."
    if len(steps) == 1 and isinstance(steps[0], _WeightNorm):
        along = None if steps[0].dim == -1 else steps[0].dim
        return Source(f"{place}original1", gain=f"{place}original0", along=along)
    axes = frozenset(axis for axis in (0, 1) if hasattr(steps, "original") and _lets_itself_be_cut(steps, axis))
    return Source(f"{place}original", axes) if axes else None


def effective(model: nn.Module, tensor: str) -> Tensor:
    """Return a parameter or buffer, or the weight that is computed of it, without gradients."""
    layer: Any = model.get_submodule(layer_of(tensor))
    if is_computed(tensor, layer):
        with torch.no_grad():
            return _normed(layer) if _has_weight_norm(layer) else layer.weight.detach()
    leaf = getattr(layer, tensor.rpartition(".")[2])
    assert isinstance(leaf, Tensor), tensor
    return leaf.detach()


def is_computed(tensor: str, layer: nn.Module) -> bool:
    """Return whether a tensor of a layer is what its weight is computed of."""
    return _PARAMETRISED in tensor or (tensor.endswith(".weight_v") and _has_weight_norm(layer))


def rescale(layer: nn.Module, removed: Mapping[int, Sequence[int]]) -> None:
    """Make the gains of weight norm those of what a cut leaves; to be called before the cut.

    Args:
        layer: left as it is where it has no gains.
        removed: axis of the weight → positions that go.
    """
    source = source_of(layer)
    if source is None or source.gain is None:
        return
    directions, gains = (_tensor(layer, name).detach() for name in (source.tensor, source.gain))
    left = directions
    for axis, positions in removed.items():
        if axis != source.along:
            left = left.index_fill(axis, torch.tensor(positions, dtype=torch.long, device=left.device), 0)
    lengths = [torch.norm_except_dim(v, 2, -1 if source.along is None else source.along) for v in (left, directions)]
    owner, _, leaf = source.gain.rpartition(".")
    learnt = _tensor(layer, source.gain).requires_grad
    setattr(layer.get_submodule(owner), leaf, nn.Parameter(gains * (lengths[0] / lengths[1]), learnt))


def refresh(layer: Any) -> None:
    """Compute the weight that old weight norm leaves beside the tensors that it is computed of."""
    if _has_weight_norm(layer):
        with torch.no_grad():
            layer.weight = _normed(layer)


def _plain(layer: nn.Module, leaf: str) -> bool:
    return leaf in layer._parameters or not isinstance(getattr(layer, leaf, None), Tensor)


def _tensor(layer: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(layer.get_submodule(owner), leaf)
    assert isinstance(tensor, Tensor), name
    return tensor


def _has_weight_norm(layer: nn.Module) -> bool:
    """Return whether `torch.nn.utils.weight_norm` was applied, from the parameters that it leaves."""
    return {"weight_g", "weight_v"} <= layer._parameters.keys() and not _plain(layer, "weight")


def _along(layer: Any) -> int | None:
    sizes = layer.weight_g.shape
    return next((axis for axis, size in enumerate(sizes) if size == layer.weight_v.shape[axis]), None)


def _normed(layer: Any) -> Tensor:
    along = _along(layer)
    return torch._weight_norm(layer.weight_v, layer.weight_g, -1 if along is None else along)


def _lets_itself_be_cut(steps: Any, axis: int) -> bool:
    """Tell, with random numbers, whether a parametrisation of some of the weights gives some of the parametrised."""
    original: Tensor = steps.original
    if original.shape[axis] < 2:
        return False
    whole = torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
    last = whole.shape[axis] - 1

    def parametrised(weights: Tensor) -> Tensor:
        for step in copies:
            weights = step(weights)
        return weights

    try:
        copies = [filled(step).eval() for step in steps]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            of_all = parametrised(whole)
            pairs = [(parametrised(whole.narrow(axis, k, last)), of_all.narrow(axis, k, last)) for k in (0, 1)]
        return all(
            one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in pairs
        )
    except Exception:  # whatever somebody's code raises
        return False
