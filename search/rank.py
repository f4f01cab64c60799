"""Rank by several criteria, and show how far they agree, and what each group's cut costs."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pruning import CRITERIA, CriterionSpec, PruningError, Ranking
from search.agreement import Agreement, agreements
from search.agreement_tables import write_agreement
from search.asked import ALL, criteria_by_label, parse_shares, placement_of
from search.config import Experiment
from search.errors import SearchError, SweepError
from search.figures import plot_agreement, plot_sensitivity
from search.inputs import Inputs, Say, silent
from search.mirror import pushed
from search.prepare import prepare_unranked
from search.rankings import known_ranking, rank_ahead, ranking_for
from search.sensitivity import Curves, curves_for

WIDTHS = "30%,50%,70%"


@dataclass(frozen=True)
class Ranked:
    """What ranking by several criteria gave.

    Attributes:
        rankings: by label.
        agreements: of every two of them on every group.
        shares: of its channels that a group keeps, ascending.
        written: the files.
    """

    rankings: dict[str, Ranking]
    agreements: list[Agreement]
    shares: tuple[Fraction, ...]
    written: list[Path]


def rank(
    experiment: Experiment,
    folder: Path | None = None,
    *,
    criteria: str | None = None,
    widths: str = WIDTHS,
    sensitivity: bool = False,
    say: Say = silent,
) -> Ranked:
    """Rank the searched groups by several criteria, compare them, and write tables and pictures.

    Rankings and measurements go to the experiment's cache as they come; whoever asks again gets them from there.

    Args:
        experiment: names network, weights and images; see `criteria_by_label` and `placement_of` for what else counts.
        folder: where the files go; those of an earlier call are replaced. None: beside the sweep's folder.
        criteria: names, separated by commas; None for those of `search.criterion`; `all` for every one that can rank
            this network.
        widths: shares of its channels that a group keeps, separated by commas.
        sensitivity: also cut one group at a time by the first criterion, and measure.
        say: told of every step.

    Raises:
        SearchError, PruningError: something that was asked for does not exist or does not fit.
    """
    shares, specs = parse_shares("--widths", widths), criteria_by_label(experiment, criteria)
    if len(specs) < 2 and not sensitivity:
        raise SearchError(
            f"--criteria: expected at least two to compare, got {', '.join(specs)}; 'all' takes every one"
        )
    folder = folder or experiment.folder.with_name(f"{experiment.name}-rank")
    if folder.exists() and not folder.is_dir():
        raise SweepError(f"{folder}: expected a folder, got a file; name another with --output")
    inputs = prepare_unranked(experiment, say)
    rankings = rank_by(inputs, specs, say, skip=criteria is not None and criteria.strip() == ALL)
    found = agreements(rankings, inputs.searched, shares)
    written = [_write_rankings(folder / "rankings", rankings)]
    if found:
        written.append(write_agreement(folder / "agreement.csv", found))
        middle = shares[len(shares) // 2]
        written.append(folder / "agreement.png")
        plot_agreement(found, middle, title=experiment.name).savefig(written[-1])
    if sensitivity:
        first = next(iter(rankings))
        say(f"cutting one group at a time by {first}")
        curves = curves_for(inputs, specs[first], placement_of(inputs), shares, say)
        written += _write_sensitivity(folder, curves, inputs, first)
    pushed(folder)
    return Ranked(rankings, found, shares, written)


def rank_by(
    inputs: Inputs, specs: Mapping[str, CriterionSpec], say: Say = silent, *, skip: bool = False
) -> dict[str, Ranking]:
    """Return the rankings by label, in the order of `specs`; those that stream feature maps are made in one pass.

    Args:
        inputs: what is ranked.
        specs: by label.
        say: told of every one, and how long it took.
        skip: leave out a criterion that cannot rank this network, and say why.

    Raises:
        PruningError: a criterion that cannot rank this network, unless `skip`.
    """
    placement = placement_of(inputs)
    made: dict[str, Ranking] = {}
    usable = {label: spec for label, spec in specs.items() if not skip or _takes(spec, label, say)}
    known = {label for label, spec in usable.items() if known_ranking(inputs, spec, placement) is not None}
    _stream(inputs, usable, say)
    for label, spec in sorted(usable.items(), key=lambda item: _needs_data(item[1])):
        start, ready = time.perf_counter(), known_ranking(inputs, spec, placement) is not None
        try:
            made[label] = ranking_for(inputs, spec, placement, say)
        except PruningError as error:
            if not skip:
                raise
            say(f"  {label} is left out: {error}")
            continue
        if label in known:
            say(f"  {label}: known from before")
        elif not ready:
            say(f"  {label}: {time.perf_counter() - start:.1f} s")
    if not made:
        raise SearchError("--criteria: expected one that can rank this network, got none")
    return {label: made[label] for label in specs if label in made}


def _stream(inputs: Inputs, specs: Mapping[str, CriterionSpec], say: Say) -> None:
    """Make in one pass what can be made so."""
    start = time.perf_counter()
    with suppress(PruningError):  # whose fault it was shows where each ranks alone
        together = rank_ahead(inputs, specs.values(), placement_of(inputs), say)
        if together:
            say(f"  all {len(together)}: {time.perf_counter() - start:.1f} s")


def _takes(spec: CriterionSpec, label: str, say: Say) -> bool:
    """Return whether a criterion can be made of its options alone."""
    try:
        CRITERIA.build(spec.name, **spec.options)
    except PruningError as error:
        say(f"  {label} is left out: {error}")
        return False
    return True


def _needs_data(spec: CriterionSpec) -> bool:
    return CRITERIA.build(spec.name, **spec.options).needs_data


def _write_rankings(folder: Path, rankings: Mapping[str, Ranking]) -> Path:
    """Write every ranking that can be saved, `<label>.safetensors`, `-` for brackets and spaces; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for label, ranking in rankings.items():
        if hasattr(ranking, "save"):
            name = "".join(letter if letter.isalnum() or letter in "_.=" else "-" for letter in label)
            ranking.save(folder / f"{name.strip('-')}.safetensors")
    return folder


def _write_sensitivity(folder: Path, curves: Curves, inputs: Inputs, label: str) -> list[Path]:
    """Write the curves of one criterion as a table and a picture; return the files."""
    widths, accuracy = inputs.searched.widths, inputs.baseline.accuracy
    table, picture = folder / "sensitivity.csv", folder / "sensitivity.png"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("criterion", "group", "channels", "keep", "accuracy", "accuracy_change"))
        for name, curve in curves.items():
            for keep, value in [*curve, (widths[name], accuracy)]:
                writer.writerow((label, name, widths[name], keep, f"{value:.6f}", f"{value - accuracy:.6f}"))
    title = f"{inputs.experiment.name}: what cutting a group by {label} costs"
    plot_sensitivity(curves, widths, accuracy, title=title).savefig(picture)
    return [table, picture]
