"""An experiment: everything a sweep needs to know, as typed and frozen data. YAML in, `--set a.b=c` on top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from pruning import (
    ALLOCATIONS,
    CRITERIA,
    MALFORMED,
    CriterionSpec,
    ModelSpec,
    Recipe,
    Selector,
    UnknownNameError,
    explain,
)
from search.dialect import read_yaml, write_yaml
from search.errors import ExperimentError
from search.mirror import pulled
from search.passwords import without_password
from search.places import address_of, is_address, path_of
from search.reading import LARGEST_EXPERIMENT, read_text
from search.sections import (
    ONE_OR_MORE,
    AllocationSpec,
    AuxiliarySpace,
    BudgetSpace,
    CriterionVariants,
    DataSpec,
    Duration,
    Limit,
    Percentage,
    Positive,
    SchedulerSpec,
    Section,
    Share,
    Span,
    SurrogateSpec,
    WidthSpace,
    both_ends,
    by_name,
    listed,
    searched,
    variants,
)

EXPERIMENT = "experiment.yaml"
"""The experiment's copy in a sweep's folder."""

COMPARE = "compare"
"""The key under which a file lists the settings that it compares."""

PATHS = ("weights", "storage", "data.options.root")  # and what search.start names
TAKEN = ("baselines", "cache", "mlflow-artifacts", "mlflow.db")
"""What lies beside the sweeps."""

PAPERS = "papers"
"""Among what is tried first: the papers' own rules."""

Placed = Annotated[Path, BeforeValidator(lambda value: path_of(value) if isinstance(value, str) else value)]
"""A path, or the copy of an address."""

Objective = Literal["accuracy", "macs", "params", "latency_ms"]
Sampler = Literal["random", "nsga2", "nsga3", "tpe", "gp"]


# What a file may say in short; the schema of experiments has these forms, too.
Criterion = str | CriterionVariants
Rule = str | AllocationSpec
SurrogateKind = Literal["sensitivity", "quadratic", "none"]
Counts = Annotated[int, Field(ge=0)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Value = str | float | bool | None
Searched = Value | Annotated[list[Any], Field(min_length=1)] | Span


class SearchSpace(Section):
    """What is searched, and how. A value is fixed, a list is a choice, `{low, high}` is a span."""

    trials: Annotated[int, Field(ge=1)] = 24
    time_budget: Duration | None = None
    """Running time after which no more trials are proposed, interruptions left out: `2h`, `90m`, `45s` or seconds."""
    concurrent: Annotated[int, Field(ge=1)] = 2
    sampler: Sampler = "tpe"
    scheduler: Annotated[
        SchedulerSpec, BeforeValidator(by_name, json_schema_input_type=Literal["none", "pareto_asha"] | SchedulerSpec)
    ] = SchedulerSpec(name="none")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    groups: Annotated[tuple[str, ...], Field(min_length=1), ONE_OR_MORE] = ("inner",)
    """Names or shell patterns of groups; `inner`, `coupled`, `all`, and `paper` for what the papers prune."""
    thinned: Annotated[tuple[str, ...], ONE_OR_MORE] = ()
    """Names or shell patterns of grouped convolutions whose groups all lose channels; see `find_groups`."""
    widths: WidthSpace = WidthSpace()
    budget: Annotated[BudgetSpace, BeforeValidator(both_ends, json_schema_input_type=Share | BudgetSpace)] = (
        BudgetSpace()
    )
    allocation: Annotated[tuple[AllocationSpec, ...], Field(min_length=1)] = (AllocationSpec(name="searched"),)
    criterion: Annotated[tuple[CriterionSpec, ...], Field(min_length=1)] = (CriterionSpec(name="l1"),)
    criterion_per: Literal["network", "stage", "group"] = "network"
    """Whether one criterion is drawn for all groups, or one for each."""
    start: Annotated[tuple[str, ...], ONE_OR_MORE] = (PAPERS,)
    """What is tried first: `papers`, rules by name, policy files, folders of sweeps; an empty list is nothing."""
    surrogate: SurrogateSpec = SurrogateSpec()
    auxiliary: AuxiliarySpace = AuxiliarySpace()
    ranking_images: Annotated[int, Field(ge=1)] = 1024
    """Training images that a criterion which needs data looks at."""
    recipe: Annotated[
        dict[str, Annotated[Span | list[Any], BeforeValidator(searched, json_schema_input_type=Searched)]],
        Field(json_schema_extra={"propertyNames": {"enum": list(Recipe.model_fields)}}),
    ] = {}
    """Searched fields of the recipe."""

    @field_validator("auxiliary", mode="before", json_schema_input_type=Counts | AuxiliarySpace)
    @classmethod
    def _by_count(cls, value: Any) -> Any:
        return {"count": value} if isinstance(value, (int, list)) else value

    @field_validator(
        "allocation", mode="before", json_schema_input_type=Rule | Annotated[list[Rule], Field(min_length=1)]
    )
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return [by_name(item) for item in listed(value)]

    @field_validator(
        "criterion", mode="before", json_schema_input_type=Criterion | Annotated[list[Criterion], Field(min_length=1)]
    )
    @classmethod
    def _each_variant(cls, value: Any) -> Any:
        return [variant for item in listed(value) for variant in variants(by_name(item))]

    @field_validator("surrogate", mode="before", json_schema_input_type=SurrogateKind | SurrogateSpec)
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("widths")
    @classmethod
    def _known_rule(cls, value: WidthSpace) -> WidthSpace:
        if value.around is not None and not ALLOCATIONS.build(value.around.name, **value.around.options).budgeted:
            raise ValueError(f"around: expected a rule with a budget, got '{value.around}'")
        return value

    @field_validator("criterion")
    @classmethod
    def _known_criterion(cls, value: tuple[CriterionSpec, ...]) -> tuple[CriterionSpec, ...]:
        for criterion in value:
            CRITERIA.build(criterion.name, **criterion.options)
        return value

    @field_validator("allocation")
    @classmethod
    def _known_allocation(cls, value: tuple[AllocationSpec, ...]) -> tuple[AllocationSpec, ...]:
        for allocation in value:
            if allocation.name != "searched":
                if allocation.name not in ALLOCATIONS.names():
                    raise UnknownNameError("allocation", allocation.name, ["searched", *ALLOCATIONS.names()])
                ALLOCATIONS.build(allocation.name, **allocation.options)
            elif allocation.options:
                raise ValueError(f"options: expected none for 'searched', got {', '.join(allocation.options)}")
        return value

    @property
    def rules(self) -> tuple[AllocationSpec, ...]:
        """The rules for widths that proposals may ask before the trials."""
        listed_ = [rule for rule in self.allocation if rule.name != "searched"]
        return tuple(listed_ if self.widths.around is None else [*listed_, self.widths.around])

    @property
    def start_paths(self) -> tuple[Path, ...]:
        """The policy files and sweeps' folders among what is tried first."""
        return tuple(path_of(item) for item in self.start if _is_path(item))

    def with_start_paths(self, change: Callable[[Path], Path]) -> SearchSpace:
        """Return the same with other paths of what is tried first."""
        start = (str(change(path_of(item))) if _is_path(item) else item for item in self.start)
        return self.model_copy(update={"start": tuple(start)})

    @field_validator("recipe")
    @classmethod
    def _fits_recipe(cls, value: dict[str, Span | list[Any]]) -> dict[str, Span | list[Any]]:
        for field, choices in value.items():
            if field not in Recipe.model_fields:
                raise UnknownNameError("key", field, Recipe.model_fields)
            if isinstance(choices, Span) and Recipe.model_fields[field].annotation is bool:
                raise ValueError(f"{field}: expected a list of choices, got a span")
            values = choices if isinstance(choices, list) else [choices.low, choices.high]
            if not values:
                raise ValueError(f"{field}: expected at least one choice, got none")
            for item in values:
                Recipe.model_validate({field: item})
        return value


def _is_path(start: str) -> bool:
    return start != PAPERS and start not in ALLOCATIONS.names()


class Resources(Section):
    """What one trial gets; GPUs may be fractions: then a part of one's memory, too."""

    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    threads: Annotated[int, Field(ge=1, validate_default=True)] = None  # type: ignore[assignment]
    """Of the CPU's work; unless it is told, one for each whole CPU."""
    memory_gib: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    """Of the machine's memory: trials wait for one another where it does not hold all; 0 does not count it."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Attempts after a worker died, or lost its GPU; a trial that raises is not tried again."""

    @field_validator("threads", mode="before", json_schema_input_type=Annotated[int, Field(ge=1)] | None)
    @classmethod
    def _as_cpus(cls, value: Any, others: ValidationInfo) -> Any:
        return max(1, int(others.data.get("cpus", 1))) if value is None else value

    @property
    def memory_bytes(self) -> int:
        """The memory of one trial, in bytes."""
        return int(self.memory_gib * 2**30)


class Tracking(Section):
    """Where MLflow keeps the runs; without a URI a SQLite file beside the sweeps."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "prunesearch"


class LatencySpec(Section):
    """How latency is measured, where it is an objective or limited."""

    batch: Annotated[int, Field(ge=1)] = 1
    repeats: Annotated[int, Field(ge=1)] = 30


class AuxiliarySpec(Section):
    """How auxiliary losses are made ready before channels are ranked.

    Attributes:
        heads: how the heads are trained on the frozen baseline, once for each placement.
        schedule: `none` ranks the baseline itself. `joint` first fine-tunes it with all losses (DCP's second release);
            `stagewise` does so before each stage of the selection (DCP's paper), for criteria that select in stages.
        fine_tuning: the recipe of that fine-tuning.
    """

    heads: Recipe = Recipe(epochs=2, learning_rate=0.05)
    schedule: Literal["none", "joint", "stagewise"] = "none"
    fine_tuning: Recipe = Recipe(epochs=1, auxiliary="sequential")


BASELINE: dict[str, Any] = {"epochs": 20, "learning_rate": 0.05}
"""What the recipe of a baseline has unless it is told; fine-tuning needs less."""


class Experiment(Section):
    """One question: which network on which images is cut how.

    Paths are relative to the experiment's file, or addresses: `s3://bucket/sweeps`.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
    model: Annotated[ModelSpec, BeforeValidator(by_name, json_schema_input_type=str | ModelSpec)]
    data: Annotated[DataSpec, BeforeValidator(by_name, json_schema_input_type=str | DataSpec)] = DataSpec()
    weights: Placed | None = None
    """The baseline's checkpoint; without it the sweep trains a baseline by `baseline` first."""
    baseline: Recipe = Recipe(**BASELINE)
    """How a baseline is trained."""
    recipe: Recipe = Recipe()
    auxiliary: AuxiliarySpec = AuxiliarySpec()
    objectives: Annotated[tuple[Objective, ...], Field(min_length=2, max_length=3)] = ("accuracy", "macs")
    constraints: dict[
        Objective, Annotated[Limit, BeforeValidator(Limit.parse, json_schema_input_type=Positive | Percentage | Limit)]
    ] = {}
    search: SearchSpace = SearchSpace()
    resources: Resources = Resources()
    latency: LatencySpec = LatencySpec()
    tracking: Tracking = Tracking()
    study: str | None = None
    """A database's address such as `postgresql://me@host/db`, for the study; without one it is a file of the sweep."""
    storage: Placed = Path("sweeps")
    cache_gib: Annotated[float, Field(ge=0)] = 10.0
    """How much rankings and heads may take in the storage's `cache`; those used least recently go first."""

    @field_validator("baseline", mode="before")
    @classmethod
    def _trained(cls, value: Any) -> Any:
        return BASELINE | value if isinstance(value, dict) else value

    @field_validator("constraints", mode="before")
    @classmethod
    def _known_metrics(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in get_args(Objective):
                raise UnknownNameError("metric", str(name), get_args(Objective))
        return value

    @field_validator("name")
    @classmethod
    def _free(cls, value: str) -> str:
        if value in TAKEN:
            raise ValueError(f"expected another name than {', '.join(TAKEN)}, got {value}")
        return value

    @field_validator("study")
    @classmethod
    def _names_database(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from sqlalchemy import make_url  # which takes a while to import
        from sqlalchemy.exc import ArgumentError

        shown = without_password(value)
        try:
            url = make_url(value)
            url.get_dialect()
        except (ArgumentError, ValueError):  # ValueError: a port that is no number
            raise ValueError(f"expected a database's address such as postgresql://me@host/db, got {shown}") from None
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_absolute():
            raise ValueError(f"expected a file such as sqlite:////home/me/study.db, got {shown}")
        return value

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, value: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if len(set(value)) != len(value) or "accuracy" not in value:
            raise ValueError(f"expected distinct names with accuracy among them, got {', '.join(value)}")
        return value

    @field_validator("constraints")
    @classmethod
    def _within_one(cls, value: dict[Objective, Limit]) -> dict[Objective, Limit]:
        accuracy = value.get("accuracy")
        if accuracy is not None and not accuracy.relative and accuracy.value > 1:
            raise ValueError(f"accuracy: expected 0 to 1, or a percentage of the baseline's, got {accuracy}")
        return value

    @model_validator(mode="after")
    def _one_selection(self) -> Self:
        per, losses = self.search.criterion_per, self.search.auxiliary
        stages = self.auxiliary.schedule == "stagewise" and bool(any(losses.count) or losses.positions)
        built = (CRITERIA.build(spec.name, **spec.options) for spec in self.search.criterion)
        if per != "network" and stages and any(isinstance(criterion, Selector) for criterion in built):
            raise ValueError(
                "search.criterion_per: expected network with schedule 'stagewise', whose selection trains the whole "
                f"network, got {per}"
            )
        return self

    @property
    def folder(self) -> Path:
        """Where the sweep keeps everything."""
        return self.storage / self.name

    @property
    def measures_latency(self) -> bool:
        """Whether trials measure latency."""
        return "latency_ms" in (*self.objectives, *self.constraints, self.search.budget.of)

    def to_yaml(self) -> str:
        """Return the experiment as YAML that `load_experiment` reads back."""
        return write_yaml(_with_addresses(self.model_dump(mode="json")))


def load_experiment(path: Path, settings: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, or that in a sweep's folder, with `a.b=c` settings on top.

    Relative paths in the file start at the file's folder, those in settings at the working directory.

    Raises:
        ExperimentError: unreadable, no YAML, or a value that names its place.
    """
    if pulled(path).is_dir():  # wherever the folder is now, its sweep's baseline and rankings are beside it
        return load_experiment(path / EXPERIMENT, [f"storage={path.resolve().parent}", *settings])
    tree = read_tree(path, settings)
    if COMPARE in tree:
        raise ExperimentError(f"experiment {path}: compares fixed settings; run it with: prunesearch compare {path}")
    return parse_experiment(tree, path.parent)


def read_tree(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Return the keys and values of an experiment file, with `a.b=c` settings on top.

    Raises:
        ExperimentError: unreadable, or no YAML.
    """
    try:
        tree = read_yaml(read_text(path, LARGEST_EXPERIMENT, ExperimentError))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ExperimentError(f"experiment {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise ExperimentError(f"experiment {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ExperimentError(f"experiment {path}: expected keys and values, got {type(tree).__name__}")
    _set(tree, settings)
    return tree


def model_experiment(model: str, settings: Sequence[str] = ()) -> Experiment:
    """Return the experiment that says nothing but its network, a name, with `a.b=c` settings on top.

    Raises:
        ExperimentError: a setting that is none, or a value that names its place.
    """
    tree: dict[str, Any] = {"name": "unnamed", "model": model}
    _set(tree, settings)
    return parse_experiment(tree)


def _set(tree: dict[str, Any], settings: Sequence[str]) -> None:
    for setting in settings:
        place, equals, text = setting.partition("=")
        if not equals or not place:
            raise ExperimentError(f"--set: expected a.b=c, got '{setting}'")
        try:
            value = _from_here(place, read_yaml(text))
        except yaml.YAMLError:
            raise ExperimentError(f"--set {setting}: '{text}' is not YAML") from None
        assign(tree, place, value, f"--set {setting}")


def parse_experiment(tree: dict[str, Any], base: Path = Path()) -> Experiment:
    """Turn nested keys and values into an experiment.

    Raises:
        ExperimentError: `place: expected …, got …` for the first fault.
    """
    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        raise ExperimentError(explain(error, "experiment", Experiment)) from None
    except MALFORMED as error:  # of a criterion or a rule, which check the names of their options only
        raise ExperimentError(f"experiment: a value that cannot be: {error}") from error
    try:
        paths = {"storage": base / experiment.storage.expanduser()}
        if experiment.weights is not None:
            paths["weights"] = base / experiment.weights.expanduser()
        options = dict(experiment.data.options)
        if isinstance(options.get("root"), str):
            options["root"] = str(base / path_of(options["root"]).expanduser())
        search = experiment.search.with_start_paths(lambda path: base / path.expanduser())
    except RuntimeError as error:  # `~nobody`
        raise ExperimentError(f"experiment: a path that cannot be: {error}") from None
    data = experiment.data.model_copy(update={"options": options})
    return experiment.model_copy(update={**paths, "data": data, "search": search})


def assign(tree: dict[str, Any], place: str, value: Any, why: str) -> None:
    """Put a value at `a.b.c` of nested keys.

    Raises:
        ExperimentError: a value on the way that has no keys; `why` stands in front of the message.
    """
    *parents, key = place.split(".")
    branch = tree
    for parent in parents:
        below = branch.get(parent)
        if below is None or isinstance(below, str):  # `model: resnet20` is short for `model: {name: resnet20}`
            below = branch[parent] = {} if below is None else {"name": below}
        if not isinstance(below, dict):
            raise ExperimentError(f"{why}: '{parent}' has no keys below it")
        branch = below
    branch[key] = value


def _from_here(place: str, value: Any) -> Any:
    """Return a setting's value, with the paths in it from the working directory."""
    if isinstance(value, dict):
        return {key: _from_here(f"{place}.{key}", below) for key, below in value.items()}
    if isinstance(value, list):
        return [_from_here(place, item) for item in value]
    if place.removeprefix(f"{COMPARE}.grid.") not in PATHS or not isinstance(value, str) or is_address(value):
        return value
    return str(Path(value).expanduser().resolve())


def _with_addresses(value: Any) -> Any:
    """Return keys and values with addresses in place of the paths of their copies."""
    if isinstance(value, dict):
        return {key: _with_addresses(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_with_addresses(item) for item in value]
    return address_of(Path(value)) or value if isinstance(value, str) else value
