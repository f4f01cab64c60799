"""A policy is the whole decision as data: network, widths, criterion and recipe. JSON, hashable, comparable."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from pruning.errors import PolicyError, suggest
from pruning.groups import ChannelGroups
from pruning.limits import LARGEST_JSON, read_bytes

FORMAT = 1
"""A new key that a file may lack does not raise it: such a file reads as ever, and older versions refuse the key."""


class Data(BaseModel):
    """A frozen, hashable value that refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def __hash__(self) -> int:
        return hash(_hashable(dict(self)))


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return frozenset((key, _hashable(part)) for key, part in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def _as_json(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as they come back from a file: tuples are lists."""
    try:
        read: dict[str, Any] = json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected values that JSON has, got {options}: {error}") from None
    return read


Options = Annotated[dict[str, Any], AfterValidator(_as_json)]
"""Options of a network or a criterion by name."""


class ModelSpec(Data):
    """Which network: a registered name (or `module:function`), its class count and its other options."""

    name: str
    num_classes: Annotated[int, Field(ge=1)] = 10
    options: Options = {}


class CriterionSpec(Data):
    """Which criterion ranks the channels, with its options."""

    name: str
    options: Options = {}


Head = Literal["dcp", "ccp"]
Position = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], AfterValidator(lambda names: tuple(sorted(set(names))))]
"""Names whose order does not count."""


class AuxiliaryPlacement(Data):
    """Where auxiliary losses sit, what their heads are and how much they weigh.

    Attributes:
        kind: `even` spreads the heads over the blocks by DCP's formula, `explicit` names their places.
        positions: of `even` how many heads; of `explicit` the block numbers, counted from 1, or module names.
        head: `dcp` has batch norm and ReLU in front of the pooling, `ccp` has not.
        weight: factor of each auxiliary loss.
    """

    kind: Literal["even", "explicit"] = "even"
    positions: Position | tuple[Position | Name, ...]
    head: Head = "dcp"
    weight: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _fits_its_kind(self) -> AuxiliaryPlacement:
        if self.kind == "even" and not isinstance(self.positions, int):
            raise ValueError(f"positions: expected how many heads for kind 'even', got {list(self.positions)}")
        if self.kind == "explicit" and (isinstance(self.positions, int) or not self.positions):
            got = self.positions if isinstance(self.positions, int) else "none"
            raise ValueError(f"positions: expected a list of places for kind 'explicit', got {got}")
        return self

    @property
    def heads(self) -> int:
        """How many heads there are."""
        return self.positions if isinstance(self.positions, int) else len(self.positions)

    def __str__(self) -> str:
        return f"{self.positions} evenly" if isinstance(self.positions, int) else ", ".join(map(str, self.positions))


class Recipe(Data):
    """How a network is trained or fine-tuned. Rates are per step, lengths in epochs, batch sizes in images."""

    epochs: Annotated[int, Field(ge=0)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    """Where `steps` decays, as fractions of the epochs."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of the baseline's soft labels in the loss; the true labels get the rest."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    augment: bool = True
    auxiliary: Literal["joint", "sequential", "none"] = "joint"
    """What the auxiliary losses of the policy, if it has any, do in fine-tuning: `joint` adds them to the loss,
    `sequential` gives them a step of their own before that of the final loss (Algorithm S1), `none` leaves them out."""
    from_scratch: bool = False
    """Draw new weights after the cut: the narrow network is trained from nothing (width multiplier)."""
    recalibration_images: Annotated[int, Field(ge=0)] = 2048
    """Training images for the batch-norm statistics after the cut; 0 keeps the baseline's statistics."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool = False


def _whole(value: Any) -> Any:
    """Refuse what pydantic would take for a number of channels: `5.0`, `"5"`, `true`."""
    if isinstance(value, (bool, float, str)):
        raise ValueError(f"expected a valid integer, got {value!r}")
    return value


Width = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
"""Channels that a group keeps."""


class Policy(Data):
    """How one network is cut and recovered.

    Policies that rank each group alike are equal, however that was written: `criterion` is that of the most groups, of
    equally many that of the first group by name, and `criteria` names the others. A file without any lacks the key.

    Attributes:
        criterion: ranks the channels of the groups that `criteria` does not name.
        criteria: by group name, of groups in `widths`.
        auxiliary: where auxiliary losses sit, in selection and fine-tuning; none where it is None.
        network: signature of the channel groups that the widths speak of (`ChannelGroups.signature`).
        widths: channels kept of each group; a group that is not named keeps all.
        thinned: the grouped convolutions that the groups were found to thin (`ChannelGroups.thinned`), by name. A file
            without any lacks the key.
    """

    format: Annotated[int, Field(json_schema_extra={"const": FORMAT})] = FORMAT
    model: ModelSpec
    network: str
    widths: dict[str, Width]
    thinned: Names = ()
    criterion: CriterionSpec = CriterionSpec(name="l1")
    criteria: dict[str, CriterionSpec] = {}
    auxiliary: AuxiliaryPlacement | None = None
    recipe: Recipe = Recipe()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="before")
    @classmethod
    def _known_format(cls, content: Any) -> Any:
        """Look at the format first: another version may have other keys."""
        found = content.get("format", FORMAT) if isinstance(content, dict) else FORMAT
        if found != FORMAT:
            raise ValueError(f"format: expected {FORMAT}, got {found}; written by another version")
        return content

    @model_validator(mode="after")
    def _one_form(self) -> Policy:
        self._check_criteria()
        if self.criteria:
            by_group = {name: self.criterion_of(name) for name in sorted(self.widths)}
            usual = Counter(by_group.values()).most_common(1)[0][0]  # of equally many the first
            others = {name: criterion for name, criterion in by_group.items() if criterion != usual}
            self.__dict__.update(criterion=usual, criteria=others)  # frozen for everybody else
        return self

    def _check_criteria(self) -> None:
        for name in self.criteria:
            if name not in self.widths:
                raise PolicyError(f"criteria: expected groups of `widths`, got '{name}'{suggest(name, self.widths)}")

    @model_serializer(mode="wrap")
    def _without_empty_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = write(self)
        return {key: value for key, value in content.items() if value or key not in ("criteria", "thinned")}

    def criterion_of(self, group: str) -> CriterionSpec:
        """Return the criterion that ranks the channels of a group."""
        return self.criteria.get(group, self.criterion)

    @property
    def every_criterion(self) -> tuple[CriterionSpec, ...]:
        """Each criterion that ranks a group, once; `criterion` first."""
        return tuple(dict.fromkeys((self.criterion, *self.criteria.values())))

    def to_json(self) -> str:
        """Return the policy as JSON, one key a line, keys sorted."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Read a policy.

        Raises:
            PolicyError: no JSON, another format, or a value that names its place.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PolicyError(explain(error, "policy", cls)) from None

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the content: equal policies have equal fingerprints."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def check(self, groups: ChannelGroups) -> None:
        """Refuse a network that the policy was not made for.

        Raises:
            PolicyError: other groups, other thinned convolutions, widths that do not fit, or a criterion of a group
                that has no width.
        """
        if self.thinned != groups.thinned:
            expected, got = (", ".join(names) or "none" for names in (self.thinned, groups.thinned))
            raise PolicyError(f"policy.thinned: expected groups found with thinned {expected}, got {got}")
        groups.check_widths(self.widths)
        self._check_criteria()
        if self.network != groups.signature:
            raise PolicyError(
                f"policy: made for a network with signature {self.network} ({self.model.name}), "
                f"got one with {groups.signature}: same group names, other widths"
            )


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        PolicyError: missing, unreadable, larger than `LARGEST_JSON` or not a policy.
    """
    try:
        text = read_bytes(path, LARGEST_JSON, PolicyError).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise PolicyError(f"policy {path}: {reason}") from None
    try:
        return Policy.from_json(text)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None


def explain(error: ValidationError, root: str, model: type[BaseModel] | None = None) -> str:
    """Return a pydantic error as one line: `place: expected …, got …` for the first fault, and how many more.

    Given the `model` that was to be made, an unknown key comes with the nearest one.
    """
    faults = error.errors(include_url=False)
    # A misspelt key is a missing one, too: what is wrong comes before what is missing.
    first = min(faults, key=lambda fault: fault["type"] == "missing")
    place = ".".join(str(part) for part in first["loc"]) or root
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = [] if model is None else _fields(model, first["loc"][:-1])
        message = f"unknown key{suggest(str(first['loc'][-1]), known) if known else ''}"
    elif first["type"] == "missing":
        message = "expected a value, got none"
    elif first["type"] not in ("value_error", "json_invalid"):
        rule = message.replace("Input should be ", "expected ", 1)
        message = f"{rule[0].lower()}{rule[1:]}, got {first['input']!r}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{place}: {message}{more}"


def _fields(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Return the keys that exist at a place below `model`, or none where a plain dictionary is meant."""
    for part in place:
        if part not in model.model_fields:  # a number in a list, a key of a dictionary
            continue
        annotation: Any = model.model_fields[str(part)].annotation
        below = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        models = [kind for kind in below if issubclass(kind, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
