"""What a command asks about rankings: criteria by label, and widths as shares that are exact."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

from pruning import CRITERIA, AuxiliaryPlacement, ChannelGroup, CriterionSpec
from search.config import Experiment
from search.errors import SearchError
from search.inputs import Inputs, ranking_key

ALL = "all"
"""Stands for every registered criterion."""


def criteria_by_label(experiment: Experiment, names: str | None = None) -> dict[str, CriterionSpec]:
    """Return criteria under the labels that tables and pictures give them.

    Args:
        experiment: a criterion that its `search.criterion` names has the options that it has there.
        names: separated by commas; None for those of `search.criterion`; `all` for those and all others.

    Raises:
        UnknownNameError: a criterion that does not exist.
    """
    known = experiment.search.criterion
    if names is None:
        asked = [spec.name for spec in known]
    elif names.strip() == ALL:
        asked = [*(spec.name for spec in known), *CRITERIA.names()]
    else:
        asked = [name.strip() for name in names.split(",")]
    specs: list[CriterionSpec] = []
    for name in dict.fromkeys(asked):
        CRITERIA.get(name)
        own = {ranking_key(spec): spec for spec in known if spec.name == name}
        specs.extend(own.values() or [CriterionSpec(name=name)])
    return {_label(spec, specs): spec for spec in specs}


def _label(spec: CriterionSpec, among: Sequence[CriterionSpec]) -> str:
    if not spec.options or sum(other.name == spec.name for other in among) == 1:
        return spec.name
    return f"{spec.name}({', '.join(f'{name}={value}' for name, value in spec.options.items())})"


def placement_of(inputs: Inputs) -> AuxiliaryPlacement | None:
    """Return the auxiliary losses that criteria see: of those that the experiment lists, the last."""
    return next(reversed(inputs.experiment.search.auxiliary.known(len(inputs.blocks))), None)


def parse_share(place: str, text: str) -> Fraction:
    """Return `30%` or `0.3` exactly.

    Raises:
        SearchError: anything else, or not between 0 and 1.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    share = Fraction(match[1]) / (100 if match[2] else 1) if match else Fraction(0)
    if not 0 < share < 1:
        raise SearchError(f"{place}: expected a share between 0% and 100%, such as 50%, got '{text.strip()}'")
    return share


def parse_shares(place: str, text: str) -> tuple[Fraction, ...]:
    """Return shares that commas separate, ascending, each once.

    Raises:
        SearchError: as for `parse_share`.
    """
    return tuple(sorted({parse_share(place, part) for part in text.split(",")}))


def width_at(share: Fraction, group: ChannelGroup) -> int:
    """Return how many channels a group keeps at a share: c − ⌊(1 − share)·c⌋, at least its minimum."""
    return max(group.minimum, ceil(share * group.width))


def written_share(share: Fraction) -> str:
    """Return `30 %`."""
    return f"{float(100 * share):g} %"
