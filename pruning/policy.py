"""A policy is the whole decision as data: network, widths, criterion and recipe. JSON, hashable, comparable."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pruning.errors import PolicyError, suggest
from pruning.groups import ChannelGroups

FORMAT = 1


class Data(BaseModel):
    """A frozen value that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(Data):
    """Which network: a registered name (or `module:function`), its class count and its other options."""

    name: str
    num_classes: Annotated[int, Field(ge=1)] = 10
    options: dict[str, Any] = {}


class CriterionSpec(Data):
    """Which criterion ranks the channels, with its options."""

    name: str
    options: dict[str, Any] = {}


class Recipe(Data):
    """How a network is trained or fine-tuned. Rates are per step, lengths in epochs, batch sizes in images."""

    epochs: Annotated[int, Field(ge=0)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
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
    recalibration_images: Annotated[int, Field(ge=0)] = 2048
    """Training images for the batch-norm statistics after the cut; 0 keeps the baseline's statistics."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool = False


class Policy(Data):
    """How one network is cut and recovered.

    Attributes:
        network: signature of the channel groups that the widths speak of (`ChannelGroups.signature`).
        widths: channels kept of each group; a group that is not named keeps all.
    """

    format: int = FORMAT
    model: ModelSpec
    network: str
    widths: dict[str, Annotated[int, Field(ge=1)]]
    criterion: CriterionSpec = CriterionSpec(name="l1")
    recipe: Recipe = Recipe()
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _known_format(self) -> Self:
        if self.format != FORMAT:
            raise ValueError(f"format: expected {FORMAT}, got {self.format}; written by another version")
        return self

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
            raise PolicyError(explain(error, "policy")) from None

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the content: equal policies have equal fingerprints."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def check(self, groups: ChannelGroups) -> None:
        """Refuse a network that the policy was not made for.

        Raises:
            PolicyError: other groups, or widths that do not fit.
        """
        groups.check_widths(self.widths)
        if self.network != groups.signature:
            raise PolicyError(
                f"policy: made for a network with signature {self.network} ({self.model.name}), "
                f"got one with {groups.signature}: same group names, other widths"
            )


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        PolicyError: missing, unreadable or not a policy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise PolicyError(f"policy {path}: {reason}") from None
    try:
        return Policy.from_json(text)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None


def explain(error: ValidationError, root: str) -> str:
    """Return a pydantic error as one line: `place: expected …, got …` for the first fault, and how many more."""
    faults = error.errors(include_url=False)
    first = faults[0]
    place = ".".join(str(part) for part in first["loc"]) or root
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    elif first["type"] not in ("value_error", "missing", "json_invalid"):
        message = f"{message[0].lower()}{message[1:]}, got {first['input']!r}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{place}: {message}{more}"


def unknown_key(place: str, key: str, model: type[BaseModel]) -> str:
    """Return the message for a key that `model` does not have, with the nearest one."""
    return f"{place}: unknown key '{key}'{suggest(key, model.model_fields)}"
