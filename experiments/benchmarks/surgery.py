"""How long trace, groups and cut take and how much memory, against torch-pruning.

    OMP_NUM_THREADS=1 python experiments/benchmarks/surgery.py --repeats 5

torchvision's networks with random weights, 224×224 pixels, an example of one image. Ours: `find_groups`, then half of
every group by L1 with `prune`, with and without its check. Theirs: a `MagnitudePruner`, whose making traces the network
and lists the groups, then one step with ratio 0.5 and L1, the classifier left out. Both take turns, each time on a
copy of the same network. Memory, and the seconds of a first call, are of fresh processes that do one of them.

Where the work differs: they run a forward pass with the weights, we compute shapes alone and follow the training
graph, too; they list the groups twice, in the making and in the step; they score a group by every slice of it,
normalised and averaged, and by readers, too, we by the filters that make it; they prove nothing about the result.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import gc
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
import torch_pruning
from torch import nn

from pruning import CRITERIA, ModelSpec, build_model, find_groups, prune

NETWORKS = ("resnet50", "densenet121", "efficientnet_v2_s", "convnext_tiny")
EXAMPLE = (1, 3, 224, 224)
FIND, CUT, WHOLE = "trace and groups", "cut", "both"
Seconds = dict[str, float]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="Unwrapped parameters")  # they find ConvNeXt's scales by themselves
    if arguments.alone:
        print(json.dumps(alone(arguments.alone, arguments.networks[0])))
    elif arguments.profile:
        for name in arguments.networks:
            profile(name, arguments.profile)
    else:
        compare(arguments.networks, arguments.repeats, arguments.threads)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare trace, groups and cut with torch-pruning.")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, and fresh processes of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="print our N most costly functions instead")
    parser.add_argument("--alone", choices=list(SIDES), help=argparse.SUPPRESS)  # what the fresh processes do
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.threads) < 1:
        parser.error("expected at least 1 repeat and 1 thread")
    return arguments


# ── the work ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def ours(network: nn.Module, *, check: bool = False) -> Seconds:
    """Cut half of every group; return seconds by phase."""
    example = torch.zeros(EXAMPLE)
    start = time.perf_counter()
    groups = find_groups(network, example)
    found = time.perf_counter()
    widths = {name: width // 2 for name, width in groups.widths.items()}
    ranking = CRITERIA.build("l1").rank(network, groups)
    prune(network, widths, ranking, groups=groups, example_input=example, check=check)
    return phases(start, found, time.perf_counter())


def ours_checked(network: nn.Module) -> Seconds:
    """Cut half of every group and prove the result."""
    return ours(network, check=True)


def theirs(network: nn.Module) -> Seconds:
    """Do the same with torch-pruning."""
    start = time.perf_counter()
    pruner = torch_pruning.pruner.MagnitudePruner(
        network,
        torch.zeros(EXAMPLE),
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[classifier(network)],
        in_channel_groups={},  # its default is one dictionary for all pruners of a process
        out_channel_groups={},
    )
    found = time.perf_counter()
    pruner.step()
    return phases(start, found, time.perf_counter())


SIDES: dict[str, Callable[[nn.Module], Seconds]] = {"ours": ours, "ours, checked": ours_checked, "theirs": theirs}


def phases(start: float, found: float, end: float) -> Seconds:
    return {FIND: found - start, CUT: end - found, WHOLE: end - start}


def classifier(network: nn.Module) -> nn.Module:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelSpec(name=name, num_classes=1000)).eval()


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def alone(side: str, name: str) -> dict[str, Any]:
    """Do the work of one side once; return its seconds and the peak of this process above what it had imported."""
    imported = peak_megabytes()
    seconds = SIDES[side](built(name))
    return {"seconds": seconds[WHOLE], "megabytes": peak_megabytes() - imported}


def peak_megabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def in_fresh_process(side: str, name: str, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--alone", side, "--networks", name, "--threads", str(threads)]
    measured: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return measured


def in_turns(name: str, repeats: int) -> tuple[dict[str, Seconds], dict[str, int]]:
    """Return the median seconds by side and phase, and the parameters that each side leaves.

    A round that is not counted comes first.
    """
    whole, left = built(name), {}
    runs: dict[str, list[Seconds]] = defaultdict(list)
    for _ in range(repeats + 1):
        for side, work in SIDES.items():
            network = copy.deepcopy(whole)
            gc.collect()  # nobody pays for what another left behind
            runs[side].append(work(network))
            left[side] = sum(parameter.numel() for parameter in network.parameters())
    medians = {
        side: {phase: statistics.median(seconds[phase] for seconds in rows[1:]) for phase in rows[0]}
        for side, rows in runs.items()
    }
    return medians, left


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def compare(names: Sequence[str], repeats: int, threads: int) -> None:
    print(
        f"224×224, half of every group by L1; torch-pruning {version('torch-pruning')}; torch {torch.__version__}; "
        f"threads: {threads}; repeats: {repeats}; load average before: {os.getloadavg()[0]:.1f}"
    )
    # First: the peak of a process also counts that of the one that started it, so this one must still be small.
    fresh = {name: fresh_medians(name, repeats, threads) for name in names}
    for name in names:
        seconds, left = in_turns(name, repeats)
        megabytes = sum(parameter.numel() for parameter in built(name).parameters()) * 4 / 1e6
        print(f"\n{name}, {megabytes:.0f} MB of weights")
        print(f"{'':34} {'ours':>10} {'theirs':>10} {'ours/theirs':>12}")
        row("trace and groups, s", seconds["ours"][FIND], seconds["theirs"][FIND])
        row("cut, without the check, s", seconds["ours"][CUT], seconds["theirs"][CUT])
        row("cut, with the check, s", seconds["ours, checked"][CUT], seconds["theirs"][CUT])
        row("both, without the check, s", seconds["ours"][WHOLE], seconds["theirs"][WHOLE])
        row("both, with the check, s", seconds["ours, checked"][WHOLE], seconds["theirs"][WHOLE])
        for checked, words in (("ours", "without"), ("ours, checked", "with")):
            first, reference = fresh[name][checked], fresh[name]["theirs"]
            row(f"both for the first time, {words}, s", first["seconds"], reference["seconds"])
            row(f"peak memory, {words}, MB", first["megabytes"], reference["megabytes"], 1)
        row("parameters left, millions", left["ours"] / 1e6, left["theirs"] / 1e6)


def fresh_medians(name: str, repeats: int, threads: int) -> Mapping[str, dict[str, float]]:
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(repeats):
        for side in SIDES:
            runs[side].append(in_fresh_process(side, name, threads))
    return {side: {key: statistics.median(run[key] for run in rows) for key in rows[0]} for side, rows in runs.items()}


def row(what: str, mine: float, reference: float, digits: int = 3) -> None:
    print(f"{what:34} {mine:10.{digits}f} {reference:10.{digits}f} {mine / reference:12.2f}", flush=True)


def profile(name: str, count: int) -> None:
    network = built(name)
    ours_checked(copy.deepcopy(network))  # what torch and we set up once
    for order in ("tottime", "cumulative"):
        copied, recorder = copy.deepcopy(network), cProfile.Profile()
        recorder.runcall(ours, copied)
        print(f"== {name}, without the check, by {order}")
        pstats.Stats(recorder).strip_dirs().sort_stats(order).print_stats(count)


if __name__ == "__main__":
    main()
