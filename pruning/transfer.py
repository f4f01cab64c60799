"""Move a policy to another network of the family: another depth, another width, other classes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pruning.allocation.ladder import Ladder
from pruning.errors import OptionError, PolicyError
from pruning.groups import ChannelGroups
from pruning.layout import Layout, places_by_name
from pruning.placement import even_positions
from pruning.policy import AuxiliaryPlacement, Policy

Shares = Mapping[str, Fraction]
"""Exact parts of one by the name of a group."""


@dataclass(frozen=True)
class Transferred:
    """A policy that was moved, and where its widths are from.

    Attributes:
        sources: for each group of the target with a counterpart, the groups of the source that it listens to, with
            their weights; they add up to 1.
        unmatched: groups of the target without a counterpart, in the order of the network. They keep all channels.
    """

    policy: Policy
    sources: Mapping[str, Shares]
    unmatched: tuple[str, ...]


def transfer_policy(policy: Policy, source: Layout, target: Layout) -> Transferred:
    """Move a policy to another network: each group keeps the share that its counterpart in the source keeps.

    The counterpart of a group has the same role in the same stage, at the same depth inside the stage (`Place`): the
    first block goes with the first, the last with the last. Between two blocks of the source the share is interpolated
    linearly. Stages are matched in the order of the networks, so `layer2` goes with `layer2`, and roles by the name
    behind the block, so `conv1` goes with `conv1`. Groups in no block, VGG's, go with such groups in the same order,
    stage by stage, where a stage is what has feature maps of one size.

    A share is rounded to whole channels, half-way to fewer, at least the group's minimum. A group is ranked by the
    criterion of its nearest counterpart. Groups that the policy does not name keep all channels, and their
    counterparts are not named either. Auxiliary losses at blocks sit behind as great a part of the target's blocks;
    those that are spread evenly stay so, and places by other names keep them. Recipe and seed are the policy's. Which
    convolutions are thinned the target says: see `thinned_counterparts`.

    Transferred to the network that it is of, a policy is what it was.

    Args:
        policy: what is moved.
        source: the network that the policy is of.
        target: the other network.

    Raises:
        PolicyError: a policy that is not of the source, or a target without a counterpart of what the policy cuts.
        OptionError: losses that do not fit between the target's blocks.
    """
    policy.check(source.groups)
    if not policy.widths:
        raise PolicyError("policy.widths: expected at least one channel group, got none")
    sources = {name: found for name in target.groups if (found := _sources(name, source, target))}
    cut = {name: found for name, found in sources.items() if not policy.widths.keys().isdisjoint(found)}
    if not cut:
        raise PolicyError(
            f"transfer: expected a network like {policy.model.name}, got {target.model.name}: "
            f"no group of it stands where the policy cuts"
        )
    criteria = {name: policy.criterion_of(_nearest(found, policy)) for name, found in cut.items()}
    moved = Policy(
        model=target.model,
        network=target.groups.signature,
        thinned=target.groups.thinned,
        widths=_widths({name: _share(found, policy, source.groups) for name, found in cut.items()}, target.groups),
        criterion=policy.criterion,
        criteria=criteria,
        auxiliary=_moved_losses(policy.auxiliary, source.blocks, target.blocks),
        recipe=policy.recipe,
        seed=policy.seed,
    )
    return Transferred(moved, sources, tuple(name for name in target.groups if name not in sources))


def thinned_counterparts(policy: Policy, source: ChannelGroups, target: ChannelGroups) -> tuple[str, ...]:
    """Return the grouped convolutions to thin in another network, so that it is cut as a policy cuts its own.

    Each goes with the nearest of the same role in the same stage; where names tell no block, with that of its name.

    Args:
        policy: says what is thinned in its network.
        source: groups of its network.
        target: groups of the other network; what is thinned there does not matter.
    """
    before, now = (places_by_name((*groups, *groups.thinnable)) for groups in (source, target))

    def counterpart(name: str) -> str | None:
        if name not in now:
            return name
        stage, role, depth = now[name].stage, now[name].role, now[name].depth
        alike = [other for other in source.thinnable if other in before]
        alike = [other for other in alike if (before[other].stage, before[other].role) == (stage, role)]
        return min(alike, key=lambda other: abs(before[other].depth - depth), default=None)

    return tuple(name for name in target.thinnable if counterpart(name) in policy.thinned)


def _sources(name: str, source: Layout, target: Layout) -> Shares:
    """Return the groups that a group of the target listens to, with weights; none where it has no counterpart."""
    place = target.places[name]
    alike = {
        found.depth: other
        for other, found in source.places.items()
        if (found.stage, found.role) == (place.stage, place.role)
    }
    return _between(place.depth, alike) if alike else {}


def _between(depth: Fraction, names: Mapping[Fraction, str]) -> Shares:
    """Return the name at a depth, or those before and behind it with linear weights."""
    depths = sorted(names)
    behind = bisect_right(depths, depth)
    before = depths[max(0, behind - 1)]
    if before >= depth or behind == len(depths):  # just there, or beyond an end
        return {names[before]: Fraction(1)}
    part = (depth - before) / (depths[behind] - before)
    return {names[before]: 1 - part, names[depths[behind]]: part}


def _share(sources: Shares, policy: Policy, groups: ChannelGroups) -> Fraction:
    kept = groups.widths | policy.widths
    return sum((weight * Fraction(kept[name], groups[name].width) for name, weight in sources.items()), Fraction(0))


def _widths(shares: Shares, groups: ChannelGroups) -> dict[str, int]:
    ladder = Ladder(groups.only(shares), round_to=1)
    return ladder.named(ladder.nearest({name: float(shares[name] * groups[name].width) for name in ladder.names}))


def _nearest(sources: Shares, policy: Policy) -> str:
    """Return the source with the greatest weight of those that the policy cuts, the earlier one of equals."""
    return max((name for name in sources if name in policy.widths), key=lambda name: sources[name])


def _moved_losses(
    placement: AuxiliaryPlacement | None, source: Sequence[str], target: Sequence[str]
) -> AuxiliaryPlacement | None:
    if placement is None:
        return None
    if isinstance(placement.positions, int):
        even_positions(len(target), placement.positions)  # refuses more than there is room for
        return placement
    moved = tuple(_moved_place(place, source, target) for place in placement.positions)
    return placement.model_copy(update={"positions": tuple(dict.fromkeys(moved))})


def _moved_place(place: int | str, source: Sequence[str], target: Sequence[str]) -> int | str:
    """Return the block of the target behind as great a part of its blocks, as a number or name, as it was given."""
    if isinstance(place, str) and place not in source:
        return place
    number = place if isinstance(place, int) else source.index(place) + 1
    if not target:
        raise OptionError(f"auxiliary.positions: expected a network with blocks for '{place}', got one without")
    if number > len(source):
        raise OptionError(f"auxiliary.positions: expected blocks from 1 to {len(source)}, got {number}")
    last = len(target) if number == len(source) else len(target) - 1
    counterpart = max(1, min(last, round(Fraction(number * len(target), len(source)))))
    return counterpart if isinstance(place, int) else target[counterpart - 1]
