"""Accuracy of the published ResNet-20 after a cut without training: criterion × width × images of the recalibration.

python experiments/criteria_resnet20.py --weights resnet20-12fca82f.th --images cifar10
"""

from __future__ import annotations

import argparse
import copy
import math
from fractions import Fraction
from pathlib import Path

import torch

from pruning import (
    CRITERIA,
    AuxiliaryLosses,
    AuxiliaryPlacement,
    ModelSpec,
    Recipe,
    build_model,
    evaluate,
    find_groups,
    load_data,
    load_weights,
    prune,
    recalibrate,
    train_heads,
)

PLAIN = ("random", "l1", "l2", "fpgm", "taylor", "ccp")
OTHERS = {
    "ccp, soft labels": ("ccp", {"label_smoothing": 0.1}, False),
    "ccp-ac": ("ccp", {}, True),
    "dcp": ("dcp", {"mode": "fast", "complete": False}, True),
    "random dcp": ("random_dcp", {"mode": "fast", "complete": False}, True),
}
"""Criterion, options, and whether two auxiliary heads join. DCP is ranked at the rate of the cut, and fitted to it."""
SHARES = (Fraction(7, 10), Fraction(1, 2))
RANKING_IMAGES = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder with train/<class>/ and test/<class>/")
    arguments = parser.parse_args()
    data = load_data("image_folder", root=str(arguments.images))
    network = build_model(ModelSpec(name="resnet20"))
    load_weights(network, arguments.weights)
    example = torch.zeros(1, *data.image_shape)
    groups = find_groups(network, example)
    groups = groups.only(groups.matching(("inner",)))
    print(f"{len(data.val)} validation images; rankings from {RANKING_IMAGES} training images, seed 0")
    print(f"{'criterion':16} {'kept':>5} {'cut':>8} {'plain':>8} {'augmented':>10}")

    def report(name: str, kept: str, cut: torch.nn.Module) -> None:
        row = [evaluate(cut, data.val).accuracy]
        for augment in (False, True):
            recalibrated = copy.deepcopy(cut)
            recalibrate(recalibrated, data.train, augment=augment)
            row.append(evaluate(recalibrated, data.val).accuracy)
        print(f"{name:16} {kept:>5} {row[0]:8.2%} {row[1]:8.2%} {row[2]:10.2%}", flush=True)

    report("uncut", "100%", network)
    heads = AuxiliaryLosses(network.eval(), AuxiliaryPlacement(positions=2), len(data.classes), example)
    for _ in train_heads(network, heads, data.train, Recipe(epochs=2, learning_rate=0.05)):
        pass
    for label, (name, options, joined) in {**{name: (name, {}, False) for name in PLAIN}, **OTHERS}.items():
        needs_data = CRITERIA.build(name).needs_data
        batches = list(data.train.subset(RANKING_IMAGES, 0).batches(128)) if needs_data else None
        for share in SHARES:
            rate = {"rate": float(1 - share)} if "dcp" in name else {}
            ranking = CRITERIA.build(name, **options, **rate).rank(network, groups, batches, heads if joined else None)
            cut = copy.deepcopy(network)
            widths = {group: math.ceil(share * width) for group, width in groups.widths.items()}
            prune(cut, widths, ranking, groups=groups, example_input=example)
            report(label, f"{float(share):.0%}", cut)


if __name__ == "__main__":
    main()
