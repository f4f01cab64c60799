"""Tables of latencies: some networks between the narrowest and the full one, measured once on a device and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from pruning import ChannelGroups, CostModel, LatencyModel, measure_widths, predict_left_out
from search.cache import NOT_KEPT, cache_of, key_of
from search.config import Experiment
from search.errors import SearchError
from search.inputs import Inputs, Say, device_name, silent
from search.reading import read_json
from search.sections import Section
from search.units import percent
from search.unwritten import going_without

NETWORKS = 40
"""So many are measured, unless somebody asked for another number before."""


class LatencyTable(Section):
    """Measured networks, and the model that was fitted to them.

    Attributes:
        about: everything that the latencies depend on, by name.
        widths: of every group, `[networks][groups]`, columns as the model's; the last network is whole.
        milliseconds: the median of a pass of each.
        predicted: what a model says of each that was fitted to the others.
        model: fitted to all of them.
    """

    about: dict[str, Any]
    widths: tuple[tuple[int, ...], ...]
    milliseconds: tuple[float, ...]
    predicted: tuple[float, ...]
    model: LatencyModel

    @model_validator(mode="after")
    def _fits(self) -> Self:
        columns = {len(row) for row in self.widths}
        counts = {len(self.widths), len(self.milliseconds), len(self.predicted)}
        if columns != {len(self.model.widths)} or len(counts) != 1:
            raise ValueError(f"expected as many rows everywhere, {len(self.model.widths)} groups in each")
        return self


@dataclass(frozen=True)
class Timed:
    """A network whose latency is asked for; its weights do not matter.

    Attributes:
        experiment: says how it is measured, and where what is measured is kept.
        network: before any cut, on the CPU, in eval mode.
        groups: all of its groups.
        searched: those that are cut.
        cost: of the whole network.
        example: one image, `[1, channels, height, width]`.
        device: `cpu` or `cuda`.
    """

    experiment: Experiment
    network: nn.Module
    groups: ChannelGroups
    searched: ChannelGroups
    cost: CostModel
    example: Tensor
    device: str

    @property
    def images(self) -> Tensor:
        """One batch, on the device."""
        shape = (self.experiment.latency.batch, *self.example.shape[1:])
        return torch.zeros(shape, dtype=self.example.dtype, device=self.device)

    @property
    def about(self) -> dict[str, Any]:
        """Everything that its latencies depend on, by name."""
        asked = self.experiment
        return {
            "model": asked.model.model_dump(),
            "network": self.groups.signature,
            "searched": sorted(self.searched),
            "image": list(self.example.shape[1:]),
            "batch": asked.latency.batch,
            "repeats": asked.latency.repeats,
            "round_to": asked.search.widths.round_to,
            "device": device_name(self.device),
            "threads": asked.resources.threads,
            "dtype": str(self.example.dtype),
            "memory_format": "contiguous",
            "torch": torch.__version__,
        }

    @property
    def path(self) -> Path:
        """Where its table lies, or will."""
        return cache_of(self.experiment).path("latencies", key_of([self.about]), ".json")


def with_latency_model(inputs: Inputs, say: Say = silent) -> Inputs:
    """Return the inputs with a model of the latency where budgets are of latency, else as they are.

    Raises:
        PruningError: a network that cannot be cut or measured.
    """
    if inputs.experiment.search.budget.of != "latency_ms":
        return inputs
    timed = Timed(
        inputs.experiment,
        inputs.network(),
        inputs.groups,
        inputs.searched,
        inputs.cost,
        inputs.example,
        inputs.device,
    )
    table = latency_table(timed, say)
    say(f"latency model: median error {percent(table.model.error)}")
    return replace(inputs, latency=table.model)


def latency_table(timed: Timed, say: Say = silent, networks: int | None = None) -> LatencyTable:
    """Return the table of a network: what was measured before on this device, or else now.

    Args:
        timed: what is measured.
        say: told of every step.
        networks: how many at least; None takes a table of any length, and makes one of `NETWORKS`.

    Raises:
        PruningError: a network that cannot be cut or measured.
    """
    count, found = networks or NETWORKS, f"latency at a batch of {timed.experiment.latency.batch}"
    cache, known = cache_of(timed.experiment), True

    def read(path: Path) -> LatencyTable:
        table = LatencyTable.model_validate(read_json(path, SearchError))
        if len(table.milliseconds) < (networks or 0):
            raise SearchError(f"expected {networks} networks, got {len(table.milliseconds)}")
        return table

    def make(path: Path) -> LatencyTable:
        nonlocal known
        known = False
        say(f"{found}: measuring {count} networks")
        table = _measured(timed, count, say)
        with going_without(NOT_KEPT, path):
            path.write_text(table.model_dump_json(), encoding="utf-8")
        return table

    table = cache.once(timed.path, read, make)
    if known:
        say(f"{found}: {len(table.milliseconds)} networks are known from before")
    return table


def _measured(timed: Timed, count: int, say: Say) -> LatencyTable:
    asked, cost = timed.experiment, timed.cost
    with threads(asked.resources.threads):  # as many as trials have
        widths, milliseconds = measure_widths(
            timed.network.to(timed.device),
            timed.searched,
            cost,
            timed.images,
            count=count,
            repeats=asked.latency.repeats,
            round_to=asked.search.widths.round_to,
            report=lambda done: say(f"  {done} of {count}"),
        )
    timed.network.to("cpu")
    return LatencyTable(
        about=timed.about,
        widths=tuple(map(tuple, widths.tolist())),
        milliseconds=tuple(milliseconds.tolist()),
        predicted=tuple(np.round(predict_left_out(cost, widths, milliseconds), 6).tolist()),
        model=LatencyModel.fit(cost, widths, milliseconds),
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
