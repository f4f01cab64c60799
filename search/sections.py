"""The small parts of an experiment: spans, shares, limits, and what is searched about widths, budgets and losses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from pruning import AuxiliaryPlacement, even_positions


class Section(BaseModel):
    """A frozen part of an experiment that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Positive = Annotated[float, Field(gt=0)]
Percentage = Annotated[str, Field(pattern=r"^\s*\d+(\.\d+)?\s*%\s*$")]
"""A part of the baseline's value: `50%`."""


def _share(value: Any) -> Any:
    """Read `50%` as 0.5; everything else as it stands."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return float(match[1]) / 100
    return value


_Part = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[_Part, BeforeValidator(_share, json_schema_input_type=_Part | Percentage)]
"""A part of the baseline's value: 0.5 or 50%."""


_UNITS = {"h": 3600, "m": 60, "s": 1}


def _seconds(value: Any) -> Any:
    """Read `2h`, `1.5h`, `90m` or `45s` as seconds; a number as it stands."""
    if not isinstance(value, str):
        return value
    if match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([hms]?)\s*", value):
        return float(match[1]) * _UNITS.get(match[2], 1)
    raise ValueError(f"expected a time like 2h, 90m, 45s, or seconds, got '{value}'")


_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Time = Annotated[str, Field(pattern=r"^\s*\d+(\.\d+)?\s*[hms]?\s*$")]
Duration = Annotated[_Seconds, BeforeValidator(_seconds, json_schema_input_type=_Seconds | _Time)]
"""Seconds: 5400, 90m or 1.5h."""


def written_duration(seconds: float) -> str:
    """Return a duration as it is written in experiments: in the largest unit that makes it a whole number."""
    unit = next((unit for unit, length in _UNITS.items() if seconds % length == 0), "s")
    return f"{seconds / _UNITS[unit]:.10g}{unit}"


def listed(value: Any) -> Any:
    """Return a value as the only one of a list; a list as it stands."""
    return value if isinstance(value, (list, tuple)) else [value]


class OneOrMore:
    """Marks a list of which the only item may stand for itself, in files and in their schema."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(listed, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


ONE_OR_MORE = OneOrMore()


def by_name(value: Any) -> Any:
    """Read a name as something of that name without options."""
    return {"name": value} if isinstance(value, str) else value


class Limit(Section):
    """A bound on a measured value: of the baseline's (`50%`), or absolute (`6e7`, `12.5`).

    `accuracy` is bounded from below, in the unit interval; everything else from above.
    """

    value: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    relative: bool = False

    @classmethod
    def parse(cls, text: Any) -> Any:
        """Read `50%`, a number, or a limit as it stands."""
        if isinstance(text, str) and text.strip().endswith("%"):
            return {"value": _share(text), "relative": True}
        if isinstance(text, (int, float, str)) and not isinstance(text, bool):
            return {"value": text}
        return text

    def of(self, baseline: float) -> float:
        """Return the bound, given the baseline's value."""
        return self.value * baseline if self.relative else self.value

    def __str__(self) -> str:
        return f"{100 * self.value:g}%" if self.relative else f"{self.value:g}"


class DataSpec(Section):
    """Which images: a registered source (or `module:function`) and its options."""

    name: str = "digits"
    options: dict[str, Any] = {}


class Span(Section):
    """A searched number between two bounds."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"expected low < high (and low > 0 for log), got {self.low} and {self.high}")
        return self


class AllocationSpec(Section):
    """Which rule says how many channels each group keeps: `searched`, or a registered one with its options."""

    name: str
    options: dict[str, Any] = {}

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


class WidthSpace(Section):
    """How widths are searched: as a direction, along which the budget is met.

    Attributes:
        per: a number for each `group`; one for each `stage` (groups of equal full width); or `scores`: two numbers a
            stage that stretch and move its scores by the trial's criterion, with one threshold over all.
        around: a rule with a budget, whose widths the numbers multiply by 0.5 to 2; without one they are parts of the
            full widths.
        minimum: every group keeps at least this part.
        round_to: widths are multiples of so many filters, or the full width.
    """

    per: Literal["group", "stage", "scores"] = "group"
    around: Annotated[
        AllocationSpec | None, BeforeValidator(by_name, json_schema_input_type=str | AllocationSpec | None)
    ] = None
    minimum: Share = 0.1
    round_to: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.per == "scores" and self.around is not None:
            raise ValueError(f"expected around with per group or stage, got scores around {self.around}")
        return self


class BudgetSpace(Section):
    """What proposals may cost, as parts of the baseline's cost; a single share is both ends.

    Attributes:
        minimum: without it 20 %, or the least that the widths can reach if that is more.
        maximum: without it 90 %, or everything if the widths can reach no less than half.
        of: what is met: `macs`, `params`, or `latency_ms` as a model of measured networks predicts it.
    """

    minimum: Share | None = None
    maximum: Share | None = None
    of: Literal["macs", "params", "latency_ms"] = "macs"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"expected minimum ≤ maximum, got {self.minimum} and {self.maximum}")
        return self

    def within(self, reachable: float) -> tuple[float, float]:
        """Return both ends, given the least share that the widths can reach.

        Raises:
            ValueError: an end that is asked for and cannot be reached.
        """
        maximum = self.maximum or max(0.9 if reachable <= 0.5 else 1.0, self.minimum or 0.0)
        for end, share in (("minimum", self.minimum), ("maximum", maximum)):
            if share is not None and share < reachable:
                expected = f"{reachable:.1%} to 100%, which the widths can reach"
                raise ValueError(f"{end}: expected {expected}, got {share:.1%}")
        return (max(min(0.2, maximum), reachable) if self.minimum is None else self.minimum), maximum


def both_ends(value: Any) -> Any:
    """Read a single share as both ends of a budget."""
    return {"minimum": value, "maximum": value} if isinstance(value, (str, int, float)) else value


class SurrogateSpec(Section):
    """The cheap model of a policy's accuracy that proposes beside the sampler.

    Attributes:
        kind: what it knows before the first trial: `sensitivity`, the curves of single groups; `quadratic`, CCP's
            model of the loss; `none` switches it off.
        share: of the proposals, after the starts, that are its.
        candidates: how many policies it scores to find its front.
    """

    kind: Literal["sensitivity", "quadratic", "none"] = "sensitivity"
    share: Annotated[float, Field(gt=0, le=1)] = 0.75
    candidates: Annotated[int, Field(ge=1)] = 100_000


class SchedulerSpec(Section):
    """Which trials are stopped early.

    Attributes:
        name: `none` trains every trial to its end; `pareto_asha` stops those that are behind at a rung.
        factor: one in so many trials goes on from a rung, and each rung has so many times the epochs of the one before.
        first: the first rung's epoch; 0 is after the cut, and the next one is 1.
    """

    name: Literal["none", "pareto_asha"]
    factor: Annotated[int, Field(ge=2)] = 3
    first: Annotated[int, Field(ge=0)] = 0

    def __str__(self) -> str:
        return self.name if self.name == "none" else f"{self.name}(factor={self.factor}, first={self.first})"


class CriterionVariants(Section):
    """A criterion as files write it: `choices` has a list of values for each option that is searched."""

    name: str
    options: dict[str, Any] = {}
    choices: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}


def variants(value: Any) -> list[Any]:
    """Return what `{name, options, choices: {option: [values]}}` stands for: each combination of the choices."""
    if not (isinstance(value, dict) and "choices" in value):
        return [value]
    rest = {key: part for key, part in value.items() if key != "choices"}
    choices = value["choices"]
    if not isinstance(choices, dict) or not all(isinstance(each, list) and each for each in choices.values()):
        raise ValueError(f"choices: expected lists of values by option, got {choices}")
    fixed = rest.get("options", {})
    if both := sorted(set(choices) & set(fixed)):
        raise ValueError(f"choices: expected options that are not fixed, got {', '.join(both)} in both")
    return [
        {**rest, "options": {**fixed, **dict(zip(choices, values, strict=True))}}
        for values in product(*choices.values())
    ]


def searched(value: Any) -> Any:
    """Make a span of `{low, high}` here: the faults that a union finds name no place."""
    if isinstance(value, dict):
        return Span.model_validate(value)
    return value if isinstance(value, Span) else listed(value)


class AuxiliarySpace(Section):
    """What is searched about auxiliary losses: how many, where, which head, what weight. A list is a choice.

    Attributes:
        count: how many losses; 0 is none.
        placement: `even` spreads them by DCP's formula; `free` searches the blocks behind which they sit.
        positions: fixed places instead of count and placement: block numbers, counted from 1, or module names.
        head: `dcp` has batch norm and ReLU in front of the pooling, `ccp` has not.
        weight: factor of each auxiliary loss.
    """

    count: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), ONE_OR_MORE] = (0,)
    placement: Annotated[tuple[Literal["even", "free"], ...], Field(min_length=1), ONE_OR_MORE] = ("even",)
    positions: Annotated[tuple[int | str, ...], ONE_OR_MORE] = ()
    head: Annotated[tuple[Literal["dcp", "ccp"], ...], Field(min_length=1), ONE_OR_MORE] = ("dcp",)
    weight: Annotated[
        Span | list[float],
        BeforeValidator(
            searched, json_schema_input_type=Positive | Annotated[list[Positive], Field(min_length=1)] | Span
        ),
    ] = [1.0]

    @field_validator("weight")
    @classmethod
    def _positive(cls, value: Span | list[float]) -> Span | list[float]:
        for weight in value if isinstance(value, list) else [value.low]:
            if not weight > 0:
                raise ValueError(f"expected weights above 0, got {weight}; count 0 leaves the losses out")
        if value == []:
            raise ValueError("expected at least one weight, got none")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.positions and self.count != (0,):
            raise ValueError(f"expected positions or count, got both: {list(self.positions)} and {list(self.count)}")
        return self

    @classmethod
    def fixed(cls, placement: AuxiliaryPlacement | None) -> AuxiliarySpace:
        """Return the space with this one placement in it."""
        if placement is None:
            return cls()
        places: dict[str, Any] = {"count": (placement.positions,)}
        if not isinstance(placement.positions, int):
            places = {"positions": placement.positions}
        return cls(**places, head=(placement.head,), weight=[placement.weight])

    @property
    def weight_is_searched(self) -> bool:
        """Whether there is more than one weight."""
        return isinstance(self.weight, Span) or len(self.weight) > 1

    @property
    def some_are_free(self) -> bool:
        """Whether there are losses whose places or weights are known only when a trial asks for them."""
        free = "free" in self.placement and not self.positions
        return (free or isinstance(self.weight, Span)) and (bool(self.positions) or any(self.count))

    def known(self, blocks: int) -> list[AuxiliaryPlacement | None]:
        """Return the placements that are known before the trials; None stands for no losses.

        Args:
            blocks: how many blocks the network has.
        """
        weights = [] if isinstance(self.weight, Span) else self.weight
        evenly = [even_positions(blocks, count) for count in self.count if count and "even" in self.placement]
        found: list[AuxiliaryPlacement | None] = [None] if not self.positions and 0 in self.count else []
        for positions in [self.positions] if self.positions else evenly:
            found += [self.placement_of(positions, head, weight) for head in self.head for weight in weights]
        return found

    def placement_of(self, positions: Sequence[int | str], head: str, weight: float) -> AuxiliaryPlacement:
        """Return losses at these places."""
        places = {"kind": "explicit", "positions": tuple(positions), "head": head, "weight": weight}
        return AuxiliaryPlacement.model_validate(places)

    def __str__(self) -> str:
        weight = (
            f"{self.weight.low:g} to {self.weight.high:g}" if isinstance(self.weight, Span) else _written(self.weight)
        )
        what = f"{_written(self.head)} heads, weight {weight}"
        if self.positions:
            return f"at {_written(self.positions)}; {what}"
        return "none" if self.count == (0,) else f"{_written(self.count)}, {_written(self.placement)}; {what}"


def _written(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
