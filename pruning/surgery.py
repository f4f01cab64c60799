"""Cut a network as a policy says, keeping the channels that a ranking says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruning.cutting import remove
from pruning.errors import SurgeryError
from pruning.finding import find_groups
from pruning.greedy import FittingRanking
from pruning.groups import ChannelGroups, tensor_of
from pruning.inputs import Example
from pruning.lineage.computed import is_computed, layer_of
from pruning.policy import Policy
from pruning.ranking import Ranking

Kept = dict[str, tuple[int, ...]]
"""For each group that was cut the channels that stayed, ascending."""


def prune(
    model: nn.Module,
    policy: Policy | Mapping[str, int],
    ranking: Ranking,
    *,
    groups: ChannelGroups | None = None,
    example_input: Example | None = None,
    check: bool = True,
) -> Kept:
    """Cut every group of `model` to the width that the policy says, keeping the channels that the ranking says.

    The model is changed in place; its parameters are new tensors, so optimizers are made after the cut. A ranking that
    fitted weights to its choice (`FittingRanking`) gives them to the network.

    Args:
        model: the network; train or eval mode and `requires_grad` are as found afterwards.
        policy: a policy, or widths by group name; a group that is not named keeps all channels.
        ranking: says which channels stay.
        groups: `find_groups(model, example_input, thinned=policy.thinned)`, where it is known already.
        example_input: `[images, channels, height, width]`; needed for the check, or to find the groups.
        check: compare the result with the masked network on random input.

    Returns:
        The channels that stayed, for `remove` on another copy of the network.

    Raises:
        PolicyError: widths that do not fit this network.
        SurgeryError: the cut network does not run or is not the masked one. The model is as it was.
    """
    if example_input is None and (check or groups is None):
        raise SurgeryError("prune: expected an `example_input` for the check, got none; or `check=False` and `groups`")
    if groups is None:
        assert example_input is not None
        thinned = policy.thinned if isinstance(policy, Policy) else ()
        groups = find_groups(model, example_input, thinned=thinned)
    if isinstance(policy, Policy):
        policy.check(groups)
        widths: Mapping[str, int] = policy.widths
    else:
        groups.check_widths(policy)
        widths = policy
    kept = {name: ranking.keep(name, keep) for name, keep in widths.items() if keep < groups[name].width}
    weights = ranking.weights(model, groups, widths) if isinstance(ranking, FittingRanking) else {}
    with _replaced(model, weights):
        remove(model, groups, kept, example_input if check else None)
    return kept


@contextmanager
def _replaced(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give tensors of `model` other values; if what follows fails, their own again."""
    for name in weights:
        if is_computed(name, model.get_submodule(layer_of(name))):
            raise SurgeryError(f"'{name}': expected a weight that fitted values can replace, got one that is computed")
    before = {name: tensor_of(model, name).detach().clone() for name in weights}
    try:
        _copy(model, weights)
        yield
    except BaseException:
        _copy(model, before)
        raise


def _copy(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in weights.items():
            tensor_of(model, name).copy_(value)
