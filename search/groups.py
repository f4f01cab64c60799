"""What can be cut in a network and what is pinned, group by group, as data and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pruning import ChannelGroup, ChannelGroups, Layout, ModelSpec, layout_of
from search.config import load_experiment
from search.describe import Table, cropped, shortened, written_cost, written_model
from search.errors import SearchError
from search.layouts import layout_for, parse_shape
from search.mirror import pulled
from search.places import is_address, path_of
from search.transfer import model_like
from search.units import percent

LONGEST_REASON = 52
"""Letters in a table's cell: with them a row fits into a terminal."""


@dataclass(frozen=True)
class GroupRow:
    """One channel group.

    Attributes:
        step: filters of its first layer that go with one channel.
        makers: layers that make the channels.
        readers: layers that read them.
        macs: share of the network's MACs that make the channels; those of all groups and pinned channels add up to
            one, but for weights that are no parameters.
    """

    name: str
    width: int
    step: int
    minimum: int
    coupled: bool
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    macs: float


@dataclass(frozen=True)
class PinnedRow:
    """Channels that no cut may touch; `macs` as of a `GroupRow`."""

    layer: str
    width: int
    reason: str
    macs: float


def network_of(
    text: str,
    num_classes: int | None,
    input_shape: str | None,
    settings: Sequence[str] = (),
    thinned: Sequence[str] = (),
) -> Layout:
    """Lay out a network without weights.

    Args:
        text: a name, `{name: …, options: {…}}`, or an experiment file or a sweep's folder.
        num_classes: of a network by name; 10 unless given.
        input_shape: of one image, `3x128x128`; the experiment's or the usual one of the network unless given.
        settings: of an experiment.
        thinned: shell patterns of grouped convolutions; see `find_groups`. An experiment has its own.

    Raises:
        SearchError, PruningError: no such network or experiment, or arguments that do not belong together.
    """
    shape = None if input_shape is None else parse_shape(input_shape)
    if not _is_experiment(text):
        if settings:
            raise SearchError(f"--set {settings[0]}: expected an experiment that it changes, got none")
        model = model_like(ModelSpec(name=text), text, num_classes, "MODEL")
        return layout_of(model, shape, thinned)
    if num_classes is not None:
        raise SearchError(f"--num-classes: expected a network by name with it, got the experiment {text}")
    if thinned:
        raise SearchError(f"--thinned: expected a network by name with it, got {text}: --set search.thinned=PATTERN")
    experiment = load_experiment(pulled(path_of(text)), settings)
    chosen = experiment.search.thinned
    if shape is not None:
        return layout_of(experiment.model, shape, chosen)
    return layout_for(experiment.model, experiment, thinned=chosen)


def _is_experiment(text: str) -> bool:
    path = Path(text)
    there = path.is_file() or (path / "experiment.yaml").is_file()
    return is_address(text) or there or path.suffix in (".yaml", ".yml")


def group_rows(network: Layout) -> tuple[GroupRow, ...]:
    """Return what is to be known of each group, in the order of the network."""
    return tuple(_row(network, group) for group in network.groups.values())


def _row(network: Layout, group: ChannelGroup) -> GroupRow:
    return GroupRow(
        name=group.name,
        width=group.width,
        step=len(group.makers[0].positions[0]),
        minimum=group.minimum,
        coupled=group.coupled,
        makers=tuple(dict.fromkeys(part.layer for part in group.makers)),
        readers=tuple(dict.fromkeys(part.layer for part in group.readers)),
        macs=network.cost.macs_of((*group.makers, *group.carried)) / network.cost.full.macs,
    )


def pinned_rows(network: Layout) -> tuple[PinnedRow, ...]:
    """Return what cannot be cut, one row for each layer and reason."""
    widths: Counter[tuple[str, str]] = Counter()
    macs: Counter[tuple[str, str]] = Counter()
    for pin in network.groups.pinned:
        widths[pin.layer, pin.reason] += pin.width
        macs[pin.layer, pin.reason] += network.cost.macs_of(pin.parts)
    full = network.cost.full.macs
    return tuple(PinnedRow(layer, width, why, macs[layer, why] / full) for (layer, why), width in widths.items())


def group_table(network: Layout, *, full: bool = False) -> Table:
    """Return one row a group; unless `full`, of layers how many make the channels, and the first that reads them."""
    rows = [
        [
            row.name if full else shortened(row.name),
            str(row.width),
            str(row.step),
            str(row.minimum),
            "coupled" if row.coupled else "inner",
            percent(row.macs),
            ", ".join(row.makers) if full else str(len(row.makers)),
            ", ".join(row.readers) if full else _first(row.readers),
        ]
        for row in group_rows(network)
    ]
    return ["group", "channels", "step", "least", "kind", "MACs", "made by", "read by"], rows


def _first(layers: tuple[str, ...]) -> str:
    return shortened(layers[0]) + (f" +{len(layers) - 1}" if len(layers) > 1 else "")


def pinned_table(network: Layout, *, full: bool = False) -> Table:
    """Return one row for each layer and reason."""
    rows = [
        [
            row.layer if full else shortened(row.layer),
            str(row.width),
            percent(row.macs),
            row.reason if full else cropped(row.reason, LONGEST_REASON),
        ]
        for row in pinned_rows(network)
    ]
    return ["pinned", "channels", "MACs", "why"], rows


def groups_lines(network: Layout) -> dict[str, str]:
    """Return what holds for all groups, in words by what it is."""
    groups, pinned = group_rows(network), pinned_rows(network)
    coupled, channels = sum(row.coupled for row in groups), sum(row.width for row in pinned)
    made, fixed = (percent(sum(row.macs for row in rows)) for rows in (groups, pinned))
    half = {row.name: max(row.minimum, (row.width + 1) // 2) for row in groups}
    return {
        "network": written_model(network.model),
        "traced": f"by {network.groups.front_end}",
        "groups": f"{len(groups)}, {coupled} coupled; they make {made} of the MACs",
        "pinned": f"{channels} channels, {fixed} of the MACs",
        **_thinned_line(network.groups),
        "halved": f"MACs {written_cost(network.cost.full.macs, network.cost.cost(half).macs)}",
        "columns": "step: filters that go with a channel; least: channels that must stay; MACs: of what makes them",
    }


def _thinned_line(groups: ChannelGroups) -> dict[str, str]:
    """Return how many grouped convolutions are thinned, where there are any that can be."""
    if not groups.thinnable:
        return {}
    count = f"{len(groups.thinned)} of {len(groups.thinnable)} grouped convolutions"
    return {"thinned": f"{count}: each group loses channels; of the others whole groups go"}
