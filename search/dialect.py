"""The YAML that experiments are written in: safe, `1e-3` is a number, a key that stands twice is a mistake."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for numbers."""


for _side in (_Loader, _Dumper):  # YAML 1.1 wants a point and a sign: `1.0e-3`
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
    )


def read_yaml(text: str) -> Any:
    """Return plain values.

    Raises:
        yaml.YAMLError: not YAML, a tag that is none of plain data, or a key that stands twice.
    """
    return yaml.load(text, _Loader)


def write_yaml(tree: dict[str, Any]) -> str:
    """Return YAML that `read_yaml` reads back, keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
