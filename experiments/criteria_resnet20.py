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

from pruning import CRITERIA, ModelSpec, build_model, evaluate, find_groups, load_data, load_weights, prune, recalibrate

CRITERION_NAMES = ("random", "l1", "l2", "fpgm", "taylor", "ccp")
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
    print(f"{'criterion':10} {'kept':>5} {'cut':>8} {'plain':>8} {'augmented':>10}")

    def report(name: str, kept: str, cut: torch.nn.Module) -> None:
        row = [evaluate(cut, data.val).accuracy]
        for augment in (False, True):
            recalibrated = copy.deepcopy(cut)
            recalibrate(recalibrated, data.train, augment=augment)
            row.append(evaluate(recalibrated, data.val).accuracy)
        print(f"{name:10} {kept:>5} {row[0]:8.2%} {row[1]:8.2%} {row[2]:10.2%}", flush=True)

    report("uncut", "100%", network)
    for name in CRITERION_NAMES:
        criterion = CRITERIA.build(name)
        batches = list(data.train.subset(RANKING_IMAGES, 0).batches(128)) if criterion.needs_data else None
        ranking = criterion.rank(network, groups, batches)
        for share in SHARES:
            cut = copy.deepcopy(network)
            widths = {group: math.ceil(share * width) for group, width in groups.widths.items()}
            prune(cut, widths, ranking, groups=groups, example_input=example)
            report(name, f"{float(share):.0%}", cut)


if __name__ == "__main__":
    main()
