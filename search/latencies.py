"""The model of the latency: some networks between the narrowest and the full one, measured once on a device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pruning import LatencyModel, measure_widths
from search.cache import NOT_KEPT, cache_of, key_of
from search.errors import SearchError
from search.inputs import Inputs, Say, silent
from search.reading import read_json
from search.units import percent
from search.unwritten import going_without

NETWORKS = 40


def with_latency_model(inputs: Inputs, say: Say = silent) -> Inputs:
    """Return the inputs with a model of the latency where budgets are of latency, else as they are.

    It is fitted once for each network, device, batch size and number of threads.

    Raises:
        PruningError: a network that cannot be cut or measured.
    """
    asked = inputs.experiment
    if asked.search.budget.of != "latency_ms":
        return inputs
    parts: list[Any] = [
        inputs.model.model_dump(),
        inputs.groups.signature,
        sorted(inputs.searched),
        list(inputs.example.shape),
    ]
    parts += [
        asked.latency.model_dump(),
        asked.search.widths.round_to,
        inputs.device_name,
        torch.get_num_threads(),
        NETWORKS,
    ]
    cache = cache_of(inputs.experiment)

    def read(path: Path) -> LatencyModel:
        return LatencyModel.from_dict(read_json(path, SearchError))

    def make(path: Path) -> LatencyModel:
        say(f"measuring the latency of {NETWORKS} networks")
        model = _fit(inputs)
        with going_without(NOT_KEPT, path):
            path.write_text(json.dumps(model.to_dict()), encoding="utf-8")
        return model

    model = cache.once(cache.path("latencies", key_of(parts), ".json"), read, make)
    say(f"latency model: median error {percent(model.error)}")
    return replace(inputs, latency=model)


def _fit(inputs: Inputs) -> LatencyModel:
    spec, cost = inputs.experiment.latency, inputs.cost
    network = inputs.network().to(inputs.device)
    images = torch.zeros((spec.batch, *inputs.example.shape[1:]), device=inputs.device)
    step = inputs.experiment.search.widths.round_to
    widths, milliseconds = measure_widths(
        network, inputs.searched, cost, images, count=NETWORKS, repeats=spec.repeats, round_to=step
    )
    return LatencyModel.fit(cost, widths, milliseconds)
