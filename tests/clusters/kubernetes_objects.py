"""Check objects of Kubernetes against its API, as the Kubernetes client has it: unknown and missing fields, types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kubernetes import client
from pydantic import BaseModel, ValidationError

_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")


def faults(document: dict[str, Any]) -> list[str]:
    """What is wrong with an object of one of Kubernetes' first versions (`v1`, `apps/v1`), each with its place."""
    return _faults(getattr(client, f"V1{document['kind']}"), document)


def template_faults(template: dict[str, Any]) -> list[str]:
    """What is wrong with a template of pods."""
    return _faults(client.V1PodTemplateSpec, template)


def _faults(model: type[BaseModel], value: dict[str, Any]) -> list[str]:
    try:
        model.model_validate(value, strict=True)
    except ValidationError as error:
        return [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return list(_bad_quantities(value))


def _bad_quantities(value: Any) -> Iterator[str]:
    """Amounts of resources that are none, such as `8 GB`: to the model they are text."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for name, item in value.items():
            if name in ("limits", "requests"):
                yield from (f"{name}.{of}: {text!r}" for of, text in item.items() if not _QUANTITY.fullmatch(text))
            yield from _bad_quantities(item)
