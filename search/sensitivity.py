"""What each group's cut costs by itself: accuracy on validation images with one group cut at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from pruning import AuxiliaryPlacement, CriterionSpec, measure_sensitivity
from search.asked import width_at
from search.cache import NOT_KEPT, cache_of
from search.inputs import Inputs, Say, silent
from search.rankings import derived_key, ranked_network, ranking_for
from search.reading import LARGEST_WIDTH, json_lines
from search.unwritten import going_without

BATCH = 256
"""Images that run at a time; the numbers hardly depend on it."""

Curves = dict[str, list[tuple[int, float]]]
"""For each group widths, ascending, with the accuracy of a network in which it alone has that width."""


def curves_for(
    inputs: Inputs,
    criterion: CriterionSpec,
    placement: AuxiliaryPlacement | None,
    shares: Sequence[Fraction],
    say: Say = silent,
) -> Curves:
    """Cut one searched group at a time by a criterion, and measure each network; batch norm is recalibrated.

    Each measurement is kept in the cache folder as it comes: whoever asks again, or for more shares, gets those that
    are known from there, and waits for those that another process measures.

    Args:
        inputs: the network, and the images: training images recalibrate, validation images measure.
        criterion: says which channels stay.
        placement: of the auxiliary losses that the criterion sees.
        shares: of its channels that a group keeps.
        say: told of every group.
    """
    ranking = ranking_for(inputs, criterion, placement, say)
    recipe = inputs.experiment.recipe
    setting = [inputs.data.fingerprint, recipe.recalibration_images, recipe.augment, inputs.experiment.search.seed]
    cache, groups = cache_of(inputs.experiment), inputs.searched
    path = cache.path("sensitivity", derived_key(inputs, criterion, placement, setting), ".jsonl")
    asked = {name: sorted({width_at(share, group) for share in shares}) for name, group in groups.items()}
    with cache.locked(path):
        known = cache.find(path, _read) or {}
        missing = [name for name, widths in asked.items() if any((name, width) not in known for width in widths)]
        new = [share for share in shares if any((name, width_at(share, groups[name])) not in known for name in missing)]
        if missing:
            network = ranked_network(inputs, criterion, placement).to(inputs.device)
            batches = _recalibration_batches(inputs), list(inputs.data.val.batches(BATCH, device=inputs.device))
            for found in measure_sensitivity(network, groups.only(missing), ranking, *batches, new):
                known[found.group, found.width] = found.accuracy
                _append(path, found.group, found.width, found.accuracy)
                if found.width == asked[found.group][-1]:
                    say(f"  [{missing.index(found.group) + 1}/{len(missing)}] {found.group}")
            cache.tidy()
    return {name: [(width, known[name, width]) for width in widths] for name, widths in asked.items()}


def _recalibration_batches(inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    """Return the images that batch norm takes its statistics from, augmented as in a trial."""
    recipe, train, seed = inputs.experiment.recipe, inputs.data.train, inputs.experiment.search.seed
    if not recipe.recalibration_images:
        return []
    chosen = train.subset(min(recipe.recalibration_images, len(train)), seed)
    generator = torch.Generator().manual_seed(seed)
    return list(chosen.batches(BATCH, augment=recipe.augment, generator=generator, device=inputs.device))


def _append(path: Path, group: str, width: int, accuracy: float) -> None:
    with going_without(NOT_KEPT), path.open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps([group, width, accuracy])}")  # the line break in front ends a line that was torn


def _read(path: Path) -> dict[tuple[str, int], float]:
    """Return what was measured, by group and width."""
    known = {}
    for point in json_lines(path):
        match point:
            case [str(group), int(width), float(accuracy)] if 0 < width <= LARGEST_WIDTH and 0 <= accuracy <= 1:
                known[group, width] = accuracy
    return known
