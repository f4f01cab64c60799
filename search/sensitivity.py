"""What each group's cut costs by itself: accuracy on validation images with one group cut at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from pruning import AuxiliaryPlacement, CriterionSpec, Ranking, evaluate, prune, recalibrate
from search.asked import width_at
from search.inputs import Inputs, Say, silent
from search.rankings import cache_path, ranked_network, ranking_for
from search.units import percent

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
    are known from there.

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
    path = cache_path(inputs, criterion, placement, "sensitivity", setting).with_suffix(".jsonl")
    known = dict(_read(path))
    curves: Curves = {}
    for number, (name, group) in enumerate(inputs.searched.items(), start=1):
        curves[name] = []
        for width in sorted({width_at(share, group) for share in shares}):
            if (name, width) not in known:
                known[name, width] = _accuracy(inputs, criterion, placement, ranking, {name: width})
                _append(path, name, width, known[name, width])
            curves[name].append((width, known[name, width]))
        told = ", ".join(f"{width}: {percent(accuracy)}" for width, accuracy in curves[name])
        say(f"  [{number}/{len(inputs.searched)}] {name}, of {group.width} channels {told}")
    return curves


def _accuracy(
    inputs: Inputs,
    criterion: CriterionSpec,
    placement: AuxiliaryPlacement | None,
    ranking: Ranking,
    widths: dict[str, int],
) -> float:
    """Return the top-1 accuracy on validation images of the network that is cut to `widths`, not fine-tuned."""
    network, recipe = ranked_network(inputs, criterion, placement), inputs.experiment.recipe
    prune(network, widths, ranking, groups=inputs.groups, example_input=inputs.example)
    recalibrate(
        network,
        inputs.data.train,
        images=recipe.recalibration_images,
        augment=recipe.augment,  # as in a trial
        device=inputs.device,
        seed=inputs.experiment.search.seed,
    )
    return evaluate(network, inputs.data.val, device=inputs.device).accuracy


def _append(path: Path, group: str, width: int, accuracy: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps([group, width, accuracy])}")  # the line break in front ends a line that was torn


def _read(path: Path) -> Iterator[tuple[tuple[str, int], float]]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            group, width, accuracy = json.loads(line)
        except ValueError:
            continue
        yield (group, width), accuracy
