"""The YAML that experiments are written in: safe, `1e-3` is a number, a key that stands twice is a mistake."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from search.reading import MOST_NODES


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[str]()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands there twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_document(self, node: yaml.Node) -> Any:
        if _size(node, {}) > MOST_NODES:
            raise yaml.YAMLError(f"expected at most {MOST_NODES:,} values, aliases written out, got more")
        return super().construct_document(node)


def _size(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """Return how many values a tree has when its aliases are written out: infinitely many if one is inside itself."""
    if node not in known:
        known[node] = float("inf")  # until it is counted
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = (part for item in below for part in (item if isinstance(item, tuple) else (item,)))
        known[node] = 1 + sum(_size(part, known) for part in parts)
    return known[node]


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for numbers."""


for _side in (_Loader, _Dumper):  # YAML 1.1 wants a point and a sign: `1.0e-3`
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
    )


def read_yaml(text: str) -> Any:
    """Return plain values.

    Raises:
        yaml.YAMLError: not YAML, a tag that is none of plain data, a key that stands twice, or too much of all.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deep") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # such as a 13th month
        raise yaml.YAMLError(f"a value that cannot be: {error}") from None


def write_yaml(tree: dict[str, Any]) -> str:
    """Return YAML that `read_yaml` reads back, keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
