"""Latency and peak memory of inference, measured on the device at hand."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruning.errors import OptionError
from pruning.memory import Portions, parts_of
from pruning.modes import in_mode


@dataclass(frozen=True)
class Latency:
    """How long one batch takes. Median and quartiles: a busy machine moves them less than mean and deviation.

    A batch that memory does not hold takes as long as its parts, one after the other.

    Attributes:
        median_ms: half of the passes took longer.
        lower_ms: a quarter of the passes took less.
        upper_ms: a quarter of the passes took longer.
        batch: images a pass.
        device: `cpu`, or the name of the accelerator.
        threads: what torch used on the CPU.
        peak_memory_bytes: weights, buffers, input and the most that was allocated beside them at one time during a
            pass. On the CPU only tensors count, not the scratch space inside one operation; None where a device
            keeps no account.
    """

    median_ms: float
    lower_ms: float
    upper_ms: float
    batch: int
    device: str
    threads: int
    peak_memory_bytes: int | None


def measure_latency(model: nn.Module, example_input: Tensor, *, repeats: int = 30, warmup: int = 5) -> Latency:
    """Measure the forward pass in eval mode.

    Args:
        model: on the device of `example_input`; the mode of each module is as found afterwards.
        example_input: one batch, `[images, channels, height, width]`.
        repeats: passes that count.
        warmup: passes before them that do not.

    Raises:
        OptionError: no repeats, or network and input on different devices.
        DeviceMemoryError: memory does not hold one image.
    """
    return compare_latency({"network": model}, example_input, repeats=repeats, warmup=warmup)["network"]


def compare_latency(
    models: Mapping[str, nn.Module], example_input: Tensor, *, repeats: int = 30, warmup: int = 5
) -> dict[str, Latency]:
    """Measure several networks in turns, one pass each a round, so that a slow moment of the machine meets them all.

    Args:
        models: networks by name; see `measure_latency`.
        example_input: one batch for all, `[images, channels, height, width]`.
        repeats: rounds that count.
        warmup: rounds before them that do not.

    Raises:
        OptionError: no repeats, or network and input on different devices.
        DeviceMemoryError: memory does not hold one image.
    """
    if repeats < 1 or warmup < 0:
        raise OptionError(f"latency: expected repeats of at least 1, warmup of at least 0, got {repeats} and {warmup}")
    for name, model in models.items():
        _check_device(name, model, example_input.device)
    networks = nn.ModuleDict({str(index): model for index, model in enumerate(models.values())})

    def measure(size: int) -> tuple[list[list[float]], list[int | None]]:
        parts = parts_of(example_input, size)
        for _ in range(warmup):
            for model in models.values():
                _pass(model, parts)
        rounds = [[_time(model, parts) for model in models.values()] for _ in range(repeats)]
        return rounds, [_peak_memory(model, parts) for model in models.values()]

    with in_mode(networks, training=False), torch.no_grad():
        rounds, memory = Portions("latency").run(len(example_input), measure)
    times = torch.tensor(rounds, dtype=torch.float64).T
    return {
        name: _summary(passes, peak, example_input) for name, passes, peak in zip(models, times, memory, strict=True)
    }


def _check_device(name: str, model: nn.Module, device: torch.device) -> None:
    first = next(model.parameters(), None)
    if first is not None and first.device != device:
        raise OptionError(f"latency of '{name}': expected the network on {device} like its input, got {first.device}")


def _summary(passes: Tensor, peak: int | None, example_input: Tensor) -> Latency:
    lower, median, upper = passes.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    device = example_input.device
    return Latency(
        median_ms=median,
        lower_ms=lower,
        upper_ms=upper,
        batch=len(example_input),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        peak_memory_bytes=peak,
    )


def _pass(model: nn.Module, parts: Sequence[Tensor]) -> None:
    for part in parts:
        model(part)


def _time(model: nn.Module, parts: Sequence[Tensor]) -> float:
    """Return the milliseconds of one pass."""
    device = parts[0].device
    if device.type == "cuda":
        return _time_on_cuda(model, parts)
    started = time.perf_counter()
    _pass(model, parts)
    if device.type != "cpu" and torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return (time.perf_counter() - started) * 1000


def _time_on_cuda(model: nn.Module, parts: Sequence[Tensor]) -> float:
    with torch.cuda.device(parts[0].device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        _pass(model, parts)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def _peak_memory(model: nn.Module, parts: Sequence[Tensor]) -> int | None:
    own, device = _bytes((*model.parameters(), *model.buffers(), *parts)), parts[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _pass(model, parts)
        return own + int(torch.cuda.max_memory_allocated(device)) - before
    if device.type == "cpu":
        live = _LiveStorages()
        with live:
            _pass(model, parts)
        return own + live.peak
    return None


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())  # tied weights count once


class _LiveStorages(TorchDispatchMode):
    """The most bytes that tensors made under this mode hold at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count the storages of its results that are not its arguments'."""
        results = func(*args, **(kwargs or {}))
        known = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(results):
            if storage._cdata not in known:
                known.add(storage._cdata)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return results

    def _free(self, size: int) -> None:
        self._now -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
