"""An experiment: everything a sweep needs to know, as typed and frozen data. YAML in, `--set a.b=c` on top."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from pruning import ALLOCATIONS, CRITERIA, CriterionSpec, ModelSpec, Recipe, UnknownNameError, explain
from search.errors import ExperimentError

PATHS = ("weights", "storage", "data.options.root")

Objective = Literal["accuracy", "macs", "params", "latency_ms"]
Sampler = Literal["random", "nsga2", "tpe", "gp"]


class Section(BaseModel):
    """A frozen part of an experiment that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _share(value: Any) -> Any:
    """Read `50%` as 0.5; everything else as it stands."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return float(match[1]) / 100
    return value


Share = Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)]
"""A part of the baseline's value: 0.5 or 50%."""


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


class WidthSpace(Section):
    """How widths are searched: each group by itself, or one share for all groups of equal full width (a stage)."""

    per: Literal["group", "stage"] = "group"
    minimum: Share = 0.1
    round_to: Annotated[int, Field(ge=1)] = 1


class BudgetSpace(Section):
    """The MACs that `uniform` and `global` allocations are given, as parts of the baseline's."""

    minimum: Share = 0.2
    maximum: Share = 0.9

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"expected minimum ≤ maximum, got {self.minimum} and {self.maximum}")
        return self


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _criterion(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class SearchSpace(Section):
    """What is searched, and how. A value is fixed, a list is a choice, `{low, high}` is a span."""

    trials: Annotated[int, Field(ge=1)] = 24
    concurrent: Annotated[int, Field(ge=1)] = 2
    sampler: Sampler = "nsga2"
    seed: Annotated[int, Field(ge=0)] = 0
    groups: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ("inner",)
    """Names or shell patterns of groups; `inner`, `coupled`, `all`, and `paper` for what the papers prune."""
    widths: WidthSpace = WidthSpace()
    budget: BudgetSpace = BudgetSpace()
    allocation: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] = ("searched",)
    criterion: Annotated[tuple[CriterionSpec, ...], BeforeValidator(_listed), Field(min_length=1)] = (
        CriterionSpec(name="l1"),
    )
    ranking_images: Annotated[int, Field(ge=1)] = 1024
    """Training images that a criterion which needs data looks at."""
    recipe: dict[str, Span | list[Any]] = {}
    """Searched fields of the recipe."""

    @field_validator("criterion", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return [_criterion(item) for item in _listed(value)]

    @model_validator(mode="after")
    def _known(self) -> Self:
        for criterion in self.criterion:
            _known_name(CRITERIA.get, criterion.name)
        for allocation in self.allocation:
            if allocation != "searched":
                _known_name(ALLOCATIONS.get, allocation)
        for field, choices in self.recipe.items():
            if field not in Recipe.model_fields:
                raise ValueError(f"recipe: unknown key '{field}'")
            values = choices if isinstance(choices, list) else [choices.low, choices.high]
            if not values:
                raise ValueError(f"recipe.{field}: expected at least one choice, got none")
            for value in values:
                Recipe.model_validate({field: value})
        return self


def _known_name(get: Any, name: str) -> None:
    try:
        get(name)
    except UnknownNameError as error:
        raise ValueError(str(error)) from None


class Resources(Section):
    """What one trial gets; GPUs may be fractions."""

    cpus: Annotated[float, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=1)] = 1
    retries: Annotated[int, Field(ge=0)] = 2
    """Attempts after a worker died; a trial that raises is not tried again."""


class Tracking(Section):
    """Where MLflow keeps the runs; without a URI a SQLite file beside the sweeps."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "prunesearch"


class LatencySpec(Section):
    """How latency is measured, where it is an objective or limited."""

    batch: Annotated[int, Field(ge=1)] = 1
    repeats: Annotated[int, Field(ge=1)] = 30


class Experiment(Section):
    """One question: which network on which images is cut how. Paths are relative to the experiment's file."""

    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")]
    model: ModelSpec
    data: DataSpec = DataSpec()
    weights: Path | None = None
    """The baseline's checkpoint; without it the sweep trains a baseline by `baseline` first."""
    baseline: Recipe = Recipe(epochs=20, learning_rate=0.05)
    recipe: Recipe = Recipe()
    objectives: Annotated[tuple[Objective, ...], Field(min_length=2, max_length=3)] = ("accuracy", "macs")
    constraints: dict[Objective, Annotated[Limit, BeforeValidator(Limit.parse)]] = {}
    search: SearchSpace = SearchSpace()
    resources: Resources = Resources()
    latency: LatencySpec = LatencySpec()
    tracking: Tracking = Tracking()
    storage: Path = Path("sweeps")

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("data", mode="before")
    @classmethod
    def _data_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives: expected distinct names, got {', '.join(self.objectives)}")
        if "accuracy" not in self.objectives:
            raise ValueError("objectives: expected accuracy among them")
        return self

    @property
    def folder(self) -> Path:
        """Where the sweep keeps everything."""
        return self.storage / self.name

    @property
    def measures_latency(self) -> bool:
        """Whether trials measure latency."""
        return "latency_ms" in (*self.objectives, *self.constraints)

    def to_yaml(self) -> str:
        """Return the experiment as YAML that `load_experiment` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_experiment(path: Path, settings: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, with `a.b=c` settings on top.

    Relative paths in the file start at the file's folder, those in settings at the working directory.

    Raises:
        ExperimentError: unreadable, no YAML, or a value that names its place.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ExperimentError(f"experiment {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise ExperimentError(f"experiment {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ExperimentError(f"experiment {path}: expected keys and values, got {type(tree).__name__}")
    for setting in settings:
        _set(tree, setting)
    return parse_experiment(tree, path.parent)


def parse_experiment(tree: dict[str, Any], base: Path = Path()) -> Experiment:
    """Turn nested keys and values into an experiment.

    Raises:
        ExperimentError: `place: expected …, got …` for the first fault.
    """
    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        raise ExperimentError(explain(error, "experiment", Experiment)) from None
    paths = {"storage": base / experiment.storage}
    if experiment.weights is not None:
        paths["weights"] = base / experiment.weights
    options = dict(experiment.data.options)
    if isinstance(options.get("root"), str):
        options["root"] = str(base / options["root"])
    data = experiment.data.model_copy(update={"options": options})
    return experiment.model_copy(update={**paths, "data": data})


def _set(tree: dict[str, Any], setting: str) -> None:
    place, equals, text = setting.partition("=")
    if not equals or not place:
        raise ExperimentError(f"--set: expected a.b=c, got '{setting}'")
    *parents, key = place.split(".")
    branch = tree
    for parent in parents:
        below = branch.setdefault(parent, {})
        if isinstance(below, str):  # `model: resnet20` is short for `model: {name: resnet20}`
            below = branch[parent] = {"name": below}
        if not isinstance(below, dict):
            raise ExperimentError(f"--set {setting}: '{parent}' has no keys below it")
        branch = below
    try:
        value = _number(yaml.safe_load(text))
        branch[key] = str(Path(value).resolve()) if place in PATHS and isinstance(value, str) else value
    except yaml.YAMLError:
        raise ExperimentError(f"--set {setting}: '{text}' is not YAML") from None


def _number(value: Any) -> Any:
    """Read `1e-3`, which YAML 1.1 takes for text, as the number it is."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value
