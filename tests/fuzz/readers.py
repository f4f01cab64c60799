"""Everything that reads files from outside, each with valid files, and how they are written from trees."""

import itertools
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import yaml
from torch import nn

from pruning import (
    CRITERIA,
    CostModel,
    Curve,
    GreedyRanking,
    LatencyModel,
    ModelSpec,
    NestedRanking,
    PathRanking,
    Policy,
    QuadraticRanking,
    SensitivityRanking,
    find_groups,
    layout_of,
    limits,
    load_policy,
    load_pruned,
    load_ranking,
    load_weights,
    prune,
    save_pruned,
    save_weights,
)
from search.compare import RESULTS, read_results
from search.comparison import load_cells
from search.config import load_experiment
from search.counts import Counts, read_events
from search.errors import SearchError
from search.model_registry.checksums import check_sums, write_sums
from search.reading import read_json
from search.sensitivity import _read as read_points
from search.sweep import Sweep
from search.tracking.ledger import Ledger
from search.tracking.outbox import OUTBOX, first_start, read_lines
from search.tracking.position import OFFSET, waiting

GOLDEN = Path(__file__).parent.parent / "golden"
WIDTHS = {"0": 3, "3": 5}


def network(num_classes=4):
    """Two convolutions, as policies name it: `readers:network`."""
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes))


@dataclass(frozen=True)
class Reader:
    """Reads a folder.

    Attributes:
        read: given the folder; raises nothing but the project's own errors.
        folder: valid files.
        names: of those that are damaged.
        trees: those of them that are JSON or YAML; of JSON lines each is a list.
    """

    read: object
    folder: Path
    names: tuple[str, ...]
    trees: tuple[str, ...] = ()
    contents: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self):
        self.contents.update({path.name: path.read_bytes() for path in self.folder.iterdir() if path.is_file()})

    def tree(self, name):
        text = self.contents[name].decode()
        if name.endswith(".yaml"):
            return yaml.safe_load(text)
        return [json.loads(line) for line in text.splitlines()] if _is_lines(name) else json.loads(text)


def written(name, tree):
    """Return a tree as the file of that name has it."""
    if name.endswith(".yaml"):
        return yaml.dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    if _is_lines(name):
        return "".join(json.dumps(line) + "\n" for line in tree).encode()
    return json.dumps(tree).encode()


def _is_lines(name):
    return name.endswith((".jsonl", ".journal"))


def make_readers(root):
    """Write valid files of every kind below a folder, and return the readers by name."""
    return {
        "policy": _policies(root / "policy"),
        "network": _networks(root / "network"),
        "checkpoint": _checkpoints(root / "checkpoint"),
        "ranking": _rankings(root / "ranking"),
        "pruned": _pruned(root / "pruned"),
        "experiment": _experiments(root / "experiment"),
        "sweep": _sweep(root / "sweep"),
        "outbox": _outbox(root / "outbox"),
        "results": _results(root / "results"),
        "latencies": _latencies(root / "latencies"),
        "checksums": _checksums(root / "checksums"),
    }


def _policies(folder):
    folder.mkdir()
    for path in GOLDEN.glob("policy-*.json"):
        shutil.copy(path, folder)
    names = tuple(path.name for path in folder.iterdir())

    def read(place):
        for name in names:
            policy = load_policy(place / name)
            assert Policy.from_json(policy.to_json()) == policy

    return Reader(read, folder, names, names)


def _networks(folder):
    """Networks by name, as policies have them; what is too large is not built."""
    folder.mkdir()
    spec = {
        "name": "resnet20",
        "num_classes": 3,
        "options": {"in_channels": 1, "widths": [2, 2, 4], "inner_widths": 9 * [2]},
    }
    (folder / "model.json").write_text(json.dumps(spec))

    def read(place):
        try:
            spec = ModelSpec.model_validate(read_json(place / "model.json", SearchError))
        except ValueError:
            return
        if spec.name == "resnet20":
            with patch.object(limits, "MOST_PARAMETERS", 10**6):  # what is allowed takes seconds to fill
                layout_of(spec, (1, 8, 8))

    return Reader(read, folder, ("model.json",), ("model.json",))


def _checkpoints(folder):
    folder.mkdir()
    model = network()
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, folder / "zip.pth")
    torch.save(model.state_dict(), folder / "legacy.th", _use_new_zipfile_serialization=False)
    save_weights(model, folder / "w.safetensors")

    def read(place):
        for path in sorted(place.iterdir()):
            load_weights(network(), path)

    return Reader(read, folder, tuple(path.name for path in folder.iterdir()))


def _rankings(folder):
    folder.mkdir()
    order, curve = torch.tensor([2, 0, 1]), torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    nested = NestedRanking.from_scores("l1", {"a": curve, "b": curve.flip(0)})
    nested.save(folder / "nested")
    quadratic = torch.eye(3, dtype=torch.float64)
    QuadraticRanking("ccp", {"a": curve}, {"a": quadratic}).save(folder / "quadratic")
    QuadraticRanking.from_joint("ccp", {"a": curve[:2], "b": curve[:1]}, quadratic).save(folder / "joint")
    PathRanking("lasso", {"a": curve[:2]}, {"a": torch.tensor([[False, True, False]])}, {"a": order}).save(
        folder / "path"
    )
    GreedyRanking("dcp", {"a": order}, {"a": curve}, {"a": 2}, {"a": {"w": curve}}, {"b": curve}).save(
        folder / "greedy"
    )
    curves = {"a": Curve(order.sort().values + 1, curve, curve / 3)}
    SensitivityRanking(nested, curves).save(folder / "sensitivity")

    def read(place):
        for path in sorted(place.iterdir()):
            ranking = load_ranking(path)
            ranking.keep("a", 1)

    return Reader(read, folder, tuple(path.name for path in folder.iterdir()))


def save_cut(folder):
    """Cut the network with random weights and save it as `apply` does."""
    model, example, spec = network(), torch.zeros(2, 1, 8, 8), ModelSpec(name="readers:network", num_classes=4)
    groups = find_groups(model, example)
    policy = Policy(model=spec, network=groups.signature, widths=WIDTHS)
    kept = prune(model, policy, CRITERIA.build("l1").rank(model, groups), groups=groups, example_input=example)
    save_pruned(folder, model, policy, kept, image_shape=(1, 8, 8))


def _pruned(folder):
    save_cut(folder)

    def read(place):
        load_pruned(place, trusted=["readers:network"])

    names = ("policy.json", "kept.json", "weights.safetensors")
    return Reader(read, folder, names, names[:2])


def _experiments(folder):
    folder.mkdir()
    for name in ("experiment.yaml", "compare.yaml"):
        shutil.copy(GOLDEN / name, folder)

    def read(place):
        experiment = load_experiment(place / "experiment.yaml")
        (place / "again.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
        load_experiment(place / "again.yaml")
        load_cells(place / "compare.yaml")

    names = ("experiment.yaml", "compare.yaml")
    return Reader(read, folder, names, names)


def _sweep(folder):
    shutil.copytree(GOLDEN / "sweep", folder)

    def read(place):
        sweep = Sweep.load(place)
        assert sweep.summary
        sweep.best(max_macs="100%")

    names = ("experiment.yaml", "baseline.json", "widths.json", "study.journal")
    return Reader(read, folder, names, names)


def _outbox(folder):
    shutil.copytree(GOLDEN / "sweep", folder)
    start = first_start(folder / OUTBOX)
    (folder / OFFSET).write_text(json.dumps({"store": "0" * 16, "offset": 10}))

    def read(place):
        ledger = Ledger(begin=first_start(place / OUTBOX))
        assert waiting(place, start["uri"] or "sqlite:///x.db") >= 0
        for line, _ in read_lines(place / OUTBOX):
            if line is not None:
                ledger.add(line)

    return Reader(read, folder, (OUTBOX, OFFSET), (OUTBOX, OFFSET))


def _results(folder):
    """What comparisons, counts and measurements of single groups keep."""
    folder.mkdir()
    metrics = {"epoch": 0, "accuracy": 0.5, "loss": 1.5, "macs": 10, "params": 5, "seconds": 1.0}
    baseline = {"accuracy": 0.9, "loss": 0.1, "macs": 20, "params": 9}
    result = {"key": "a", "baseline": baseline, "history": [metrics, metrics | {"epoch": 1}], "test": 0.5}
    (folder / RESULTS).write_text(2 * (json.dumps(result) + "\n"))
    (folder / "shared.jsonl").write_text('["rankings", "l1-0", true]\n["auxiliary", "1", false]\n')
    (folder / "points.jsonl").write_text('["layer1", 3, 0.5]\n["layer2", 4, 0.25]\n')

    def read(place):
        for found in read_results(place).values():
            assert found.history[0].macs / found.baseline["macs"] >= 0
        assert str(Counts(read_events(place / "shared.jsonl")))
        assert all(width + accuracy < 1e400 for (_, width), accuracy in read_points(place / "points.jsonl").items())

    names = (RESULTS, "shared.jsonl", "points.jsonl")
    return Reader(read, folder, names, names)


def _latencies(folder):
    folder.mkdir()
    model = network()
    example = torch.zeros(2, 1, 8, 8)
    cost = CostModel(model, find_groups(model, example), example)
    widths = np.array(list(itertools.product(*(range(1, width + 1) for width in cost.widths.tolist()))))
    fitted = LatencyModel.fit(cost, widths, np.linspace(1.0, 2.0, len(widths)))
    (folder / "latency.json").write_text(json.dumps(fitted.to_dict()))

    def read(place):
        LatencyModel.from_dict(read_json(place / "latency.json", SearchError))

    return Reader(read, folder, ("latency.json",), ("latency.json",))


def _checksums(folder):
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    expected = write_sums(folder)

    def read(place):
        check_sums(place, expected, "net/1")

    return Reader(read, folder, ("SHA256SUMS", "a.txt"))
