"""Measure once what widths cost on this machine: the tables that budgets of latency are met by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pruning import ChannelGroups, CostModel, build_model, count_cost, find_groups, input_shape
from search.config import Experiment
from search.errors import SearchError
from search.inputs import Say, device_name, searched_groups, silent
from search.latencies import LatencyTable, Timed, latency_table
from search.prepare import build_subject, device_for
from search.units import percent

ROWS = 11
"""So many networks of a table are shown."""


@dataclass(frozen=True)
class Benched:
    """A table of latencies for one size of batch.

    Attributes:
        batch: images a pass.
        table: what was measured.
        path: where it is kept.
        searched: the groups that were cut.
        cost: of the whole network.
    """

    batch: int
    table: LatencyTable
    path: Path
    searched: ChannelGroups
    cost: CostModel

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Return headers and rows: some of the networks, from the narrowest to the full one."""
        table, columns = self.table, [self.cost.groups.index(name) for name in self.searched]
        widths = np.array(table.widths)
        channels = widths[:, columns].sum(axis=1) / self.cost.widths[columns].sum()
        macs = self.cost.costs(widths)[0] / self.cost.full.macs
        shown = np.unique(np.linspace(0, len(widths) - 1, min(ROWS, len(widths))).round().astype(int))
        return ["channels", "MACs", "measured (ms)", "predicted (ms)", "error"], [
            [
                percent(channels[row]),
                percent(macs[row]),
                f"{table.milliseconds[row]:.3g}",
                f"{table.predicted[row]:.3g}",
                f"{100 * (table.predicted[row] / table.milliseconds[row] - 1):+.1f} %",
            ]
            for row in shown.tolist()
        ]

    def summary(self) -> str:
        """Return how good the model is, and where it lies."""
        count, error = len(self.table.milliseconds), percent(self.table.model.error)
        return f"median error of {count} networks, each predicted by the others: {error}; kept in {self.path}"


def bench(
    experiment: Experiment,
    *,
    batches: Sequence[int] = (),
    device: str | None = None,
    image: Sequence[int] | None = None,
    networks: int | None = None,
    by_name: bool = False,
    say: Say = silent,
) -> list[Benched]:
    """Measure cuts of a network for each size of batch, or find what was measured before.

    The tables are those that sweeps with a budget of latency look for: of the same network and image, the same searched
    groups, the same machine.

    Args:
        experiment: names the network, the searched groups, and where the tables are kept.
        batches: images a pass; none stands for the experiment's own number.
        device: `cpu` or `cuda`; None for that on which the experiment's trials run.
        image: channels, height and width; None for those of the experiment's images or the network's usual ones.
        networks: how many are measured at least; None for whatever is there, or 40.
        by_name: the network is all that was named: there are no images to look at.
        say: told of every step.

    Raises:
        SearchError, PruningError: something that was asked for does not exist or does not fit.
    """
    device = _checked(device or device_for(experiment))
    network, shape = _subject(experiment, image, by_name, say)
    example = torch.zeros((1, *shape))
    count_cost(network, example)  # refuses images that the network does not take
    groups = find_groups(network, example, thinned=experiment.search.thinned)
    searched, cost = groups.only(searched_groups(experiment, groups)), CostModel(network, groups, example)
    size = "×".join(map(str, shape))
    say(f"{len(searched)} of {len(groups)} channel groups are cut, images of {size}")
    say(f"{device_name(device)}, threads: {experiment.resources.threads}, torch {torch.__version__}")
    found = []
    for batch in batches or (experiment.latency.batch,):
        latency = experiment.latency.model_copy(update={"batch": batch})
        asked = experiment.model_copy(update={"latency": latency})
        timed = Timed(asked, network, groups, searched, cost, example, device)
        found.append(Benched(batch, latency_table(timed, say, networks), timed.path, searched, cost))
    return found


def _checked(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise SearchError("--device: expected one that is there, got cuda without a CUDA device")
    return device


def _subject(
    experiment: Experiment, image: Sequence[int] | None, by_name: bool, say: Say
) -> tuple[nn.Module, Sequence[int]]:
    """Return the network with random weights, in eval mode, and the shape of an image."""
    if not by_name and image is None:
        subject = build_subject(experiment, say)
        return subject.network.eval(), subject.data.image_shape
    with torch.random.fork_rng(devices=[]):
        network = build_model(experiment.model)
    return network.eval(), image or input_shape(experiment.model)
