"""JSON Schemas of the files that people write and read: editors complete by them and mark mistakes."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from pruning import Policy
from search.comparison import Comparison
from search.config import Experiment

Kind = Literal["policy", "experiment"]


class ExperimentFile(Experiment):
    """A sweep, or with a section `compare` fixed settings side by side."""

    compare: Comparison | None = None


MODELS: dict[Kind, type[BaseModel]] = {"policy": Policy, "experiment": ExperimentFile}
TITLES: dict[Kind, str] = {"policy": "A policy of prunesearch", "experiment": "An experiment of prunesearch"}


class _Lean(GenerateJsonSchema):
    """Leaves out titles, which say the keys again, and defaults that are sections: their own keys have defaults."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        found = super().default_schema(schema)
        if isinstance(found.get("default"), dict):
            del found["default"]
        return found

    def model_schema(self, schema: core_schema.ModelSchema) -> dict[str, Any]:
        """Move what a docstring says of each attribute to the attribute, where an editor shows it."""
        found = super().model_schema(schema)
        text, _, attributes = found.get("description", "").partition("\n\nAttributes:\n")
        for name, words in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.MULTILINE):
            found["properties"][name].setdefault("description", " ".join(words.split()))
        return {**found, "description": " ".join(text.split())} if text else found


def schema_of(kind: Kind) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a kind of file, in every form that the loader takes."""
    tree = MODELS[kind].model_json_schema(schema_generator=_Lean)
    return {"$schema": _Lean.schema_dialect, **tree, "title": TITLES[kind]}


def schema_text(kind: Kind) -> str:
    """Return the JSON Schema as it is kept in `search/schemas`."""
    return json.dumps(schema_of(kind), indent=2, ensure_ascii=False) + "\n"
