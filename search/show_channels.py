"""Show what the channels see that a criterion keeps, and what those see that it removes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning import (
    ChannelGroup,
    ChannelGroups,
    CriterionSpec,
    Ranking,
    Reading,
    Request,
    UnknownNameError,
    intensities,
    observe,
    read_picture,
)
from search.agreement import staying
from search.asked import criteria_by_label, parse_share, placement_of, width_at
from search.config import Experiment
from search.errors import SearchError
from search.figures import ImageMaps, plot_maps
from search.inputs import Inputs, Say, searched_groups, silent
from search.prepare import prepare_unranked
from search.rankings import ranked_network, ranking_for


def show_channels(
    experiment: Experiment,
    group: str,
    output: Path,
    *,
    criterion: str | None = None,
    width: str = "50%",
    images: int = 3,
    files: Sequence[Path] = (),
    say: Say = silent,
) -> Path:
    """Draw the feature maps of a group's kept and removed channels for some images; return the file.

    The maps are those of the uncut network where the group's first reader reads them, behind norm, ReLU and pool.

    Args:
        experiment: names network, weights and images.
        group: name of the group; one that is not searched is ranked by itself.
        output: a PNG file; replaced.
        criterion: says which channels stay; None for the first of `search.criterion`.
        width: how many: a share, or a number.
        images: how many validation images, drawn by class shares.
        files: image files to take instead.
        say: told of every step.

    Raises:
        UnknownNameError: no such group, or criterion.
        SearchError: a width that the group does not have, or no image.
        PruningError: an image that cannot be read, or a criterion that cannot rank the group.
    """
    label, spec = next(iter(criteria_by_label(experiment, criterion).items()))
    if images < 1:
        raise SearchError(f"--images: expected at least 1, got {images}")

    def check(groups: ChannelGroups) -> None:
        if group not in groups:
            raise UnknownNameError("channel group", group, groups)
        _width(width, groups[group])

    inputs = prepare_unranked(experiment, say, check)
    chosen = inputs.groups[group]
    pictures, titles = _images(inputs, images, files)
    ranking = _ranking(inputs, spec, group, say)
    keep = _width(width, chosen)
    kept, removed = _by_rank(ranking, chosen, keep)
    network = ranked_network(inputs, spec, placement_of(inputs))
    reader, maps = _maps(network.to(inputs.device), inputs.groups.only([group]), pictures.to(inputs.device))
    rows = [
        ImageMaps(title, picture, maps_of_one)
        for title, picture, maps_of_one in zip(titles, _visible(pictures, inputs), maps, strict=True)
    ]
    height, across = maps.shape[2:]
    title = f"{group}: {label} keeps {keep} of {chosen.width} channels"
    subtitle = f"as {reader} reads them, {height} × {across}; by rank, the most important first; one colour scale a row"
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_maps(rows, kept, removed, title=title, subtitle=subtitle).savefig(output)
    return output


def _width(text: str, group: ChannelGroup) -> int:
    """Return how many channels a share, or a number, asks for; at least one stays and one goes."""
    if not text.strip().isdecimal():
        return min(width_at(parse_share("--width", text), group), group.width - 1)
    if not group.minimum <= int(text) < group.width:
        most = f"{group.minimum} to {group.width - 1} of the {group.width} channels of {group.name}"
        raise SearchError(f"--width: expected {most}, or a share such as 50%, got {text.strip()}")
    return int(text)


def _ranking(inputs: Inputs, spec: CriterionSpec, group: str, say: Say) -> Ranking:
    """Return the ranking of the searched groups, which a sweep shares, or of one that is not searched."""
    if group not in searched_groups(inputs.experiment, inputs.groups):
        search = inputs.experiment.search.model_copy(update={"groups": (group,)})
        experiment = inputs.experiment.model_copy(update={"search": search})
        inputs = replace(inputs, experiment=experiment)
    return ranking_for(inputs, spec, placement_of(inputs), say)


def _by_rank(ranking: Ranking, group: ChannelGroup, keep: int) -> tuple[list[int], list[int]]:
    """Return the kept and the removed channels, each the most important first."""
    counts = staying(ranking, group)
    order = sorted(range(group.width), key=lambda channel: (-counts[channel], channel))
    kept = set(ranking.keep(group.name, keep))
    return [channel for channel in order if channel in kept], [channel for channel in order if channel not in kept]


def _images(inputs: Inputs, count: int, files: Sequence[Path]) -> tuple[Tensor, list[str]]:
    """Return normalised images, `[images, channels, height, width]`, with a title each."""
    if files:
        return torch.cat([read_picture(path, inputs.data) for path in files]), [path.name for path in files]
    split = inputs.data.val.subset(min(count, len(inputs.data.val)), inputs.experiment.search.seed)
    images, labels = next(iter(split.batches(len(split))))
    return images, [inputs.data.classes[label] for label in labels.tolist()]


def _visible(images: Tensor, inputs: Inputs) -> list[NDArray[Any]]:
    """Return images as matplotlib takes them; other numbers of channels than three become their mean in gray."""
    shown = intensities(images, inputs.data)
    return [(image.permute(1, 2, 0) if len(image) == 3 else image.mean(dim=0)).numpy() for image in shown]


class _First:
    """Keeps what the first reader of a group reads."""

    def __init__(self) -> None:
        self.reader = ""
        self.maps: NDArray[Any] | None = None

    def see(self, reading: Reading) -> None:
        if self.maps is None:
            self.reader, self.maps = reading.part.layer, reading.maps.cpu().numpy()


def _maps(network: nn.Module, groups: ChannelGroups, images: Tensor) -> tuple[str, NDArray[Any]]:
    """Return the first layer that reads the group, and the maps there, `[images, channels, height, width]`."""
    first, labels = _First(), torch.zeros(len(images), dtype=torch.int64, device=images.device)
    observe(network, groups, [(images, labels)], [Request(first)])
    if first.maps is None:
        raise SearchError(f"--group {next(iter(groups))}: expected a layer that reads it in eval mode, got none")
    return first.reader, first.maps
