"""The files of clusters/, and what a user might write for the values that they mark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clusters"
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file() and path.name != ".env")
MARK = re.compile(r"<CHANGE-ME:([a-z]+)>")
EXAMPLES = {
    "ami": "ami-0123456789abcdef0",
    "bucket": "mlflow",
    "claim": "shared",
    "cpus": "7",
    "environment": "/shared/venv",
    "experiment": "/shared/experiments/mine.yaml",
    "gpus": "4",
    "head": "10.0.0.1",
    "image": "registry.example.org/prunesearch:1",
    "key": "~/.ssh/id_ed25519",
    "memory": "28Gi",
    "nfs": "10.0.0.2:/sweeps",
    "operator": "kuberay",
    "partition": "gpu",
    "project": "my-project",
    "region": "europe-west4",
    "store": "https://s3.example.org",
    "user": "me",
    "worker": "10.0.0.3",
    "zone": "europe-west4-a",
}


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def filled(text: str) -> str:
    """The text with an example for every marked value."""
    return MARK.sub(lambda mark: EXAMPLES[mark[1]], text)


def documents_of(name: str) -> list[dict[str, Any]]:
    """The documents of a filled-in YAML file."""
    return list(yaml.safe_load_all(filled(text_of(name))))


def changed(tree: Any, path: str, value: Any) -> Any:
    """The tree with another value at `a.0.b`; the last key need not be there."""
    key, _, rest = path.partition(".")
    if isinstance(tree, list):
        return [changed(item, rest, value) if str(at) == key else item for at, item in enumerate(tree)]
    return tree | {key: changed(tree[key], rest, value) if rest else value}


def without(tree: Any, path: str) -> Any:
    """The tree without what stands at `a.0.b`."""
    key, _, rest = path.partition(".")
    if isinstance(tree, list):
        return [without(item, rest) if str(at) == key else item for at, item in enumerate(tree)]
    return {name: without(value, rest) if name == key else value for name, value in tree.items() if rest or name != key}
