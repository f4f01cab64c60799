"""What a measurement reports; how long things take is no test."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pruning import latency
from pruning.errors import OptionError
from pruning.latency import compare_latency, measure_latency

IMAGES = torch.zeros(4, 3, 8, 8)


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.Dropout())


class Spy(nn.Module):
    def __init__(self, name: str, calls: list) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x):
        self.calls.append((self.name, self.training, torch.is_grad_enabled()))
        return x


@pytest.fixture
def clock(monkeypatch):
    """Passes that take 1, 2, 3 … 9 and then a thousand seconds."""
    durations = itertools.chain(range(1, 10), itertools.repeat(1000))
    ticks = (tick for duration in durations for tick in (0.0, float(duration)))
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))


def test_median_and_quartiles_are_those_of_the_passes(clock):
    result = measure_latency(make_network(), IMAGES, repeats=9, warmup=0)
    assert (result.lower_ms, result.median_ms, result.upper_ms) == (3000, 5000, 7000)


def test_one_slow_pass_hardly_moves_the_median(clock):
    result = measure_latency(make_network(), IMAGES, repeats=10, warmup=0)
    assert result.median_ms == 5500


def test_says_what_was_measured():
    result = measure_latency(make_network(), IMAGES, repeats=2, warmup=0)
    assert (result.batch, result.device, result.threads) == (4, "cpu", torch.get_num_threads())
    assert 0 < result.lower_ms <= result.median_ms <= result.upper_ms


def test_runs_in_eval_mode_without_gradients_and_leaves_the_modes():
    calls: list = []
    model = nn.Sequential(make_network(), Spy("a", calls)).train()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    measure_latency(model, IMAGES, repeats=3, warmup=2)
    assert set(calls) == {("a", False, False)}
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_the_modes_come_back_after_an_error():
    model = nn.Sequential(nn.Conv2d(5, 2, 3)).train()
    with pytest.raises(RuntimeError):
        measure_latency(model, IMAGES)
    assert all(module.training for module in model.modules())


def test_networks_take_turns():
    calls: list = []
    result = compare_latency({name: Spy(name, calls) for name in "abc"}, IMAGES, repeats=4, warmup=1)
    assert "".join(name for name, *_ in calls[:15]) == "abc" * 5
    assert list(result) == ["a", "b", "c"]


def test_each_network_gets_its_own_passes(clock):
    result = compare_latency({"a": Spy("a", []), "b": Spy("b", [])}, IMAGES, repeats=3, warmup=0)
    assert [result[name].median_ms for name in "ab"] == [3000, 4000]


def test_peak_memory_is_weights_input_and_the_largest_sum_of_live_tensors():
    model = make_network()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    alive = 4 * 8 * 8 * (8 + 16) * 4  # while the second convolution runs: its input and its output
    assert measure_latency(model, IMAGES, repeats=1).peak_memory_bytes == weights + IMAGES.nbytes + alive


def test_peak_memory_counts_a_branch_that_is_kept_and_no_view_twice():
    class Branches(nn.Module):
        def forward(self, x):
            kept = x * 2
            hidden = (kept + 1).relu_().view(4, -1).reshape(-1)
            return kept.view(-1) + hidden

    assert measure_latency(Branches(), IMAGES, repeats=1).peak_memory_bytes == 4 * IMAGES.nbytes


def test_tied_weights_count_once():
    layer = nn.Linear(8, 8, bias=False)
    tied = nn.Sequential(layer, layer, nn.Linear(8, 8, bias=False))
    tied[2].weight = layer.weight
    result = measure_latency(tied, torch.zeros(1, 8), repeats=1)
    assert result.peak_memory_bytes == 8 * 8 * 4 + 3 * 8 * 4  # the weight; input and the two last outputs


def test_a_device_without_an_account_has_no_peak():
    model, images = make_network().to("meta"), IMAGES.to("meta")
    assert measure_latency(model, images, repeats=1).peak_memory_bytes is None


def test_repeats_and_devices_are_checked():
    with pytest.raises(OptionError, match="repeats of at least 1"):
        measure_latency(make_network(), IMAGES, repeats=0)
    with pytest.raises(OptionError, match="expected the network on cpu like its input, got meta"):
        measure_latency(make_network().to("meta"), IMAGES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_named_and_its_memory_counted():
    model, images = make_network().cuda(), IMAGES.cuda()
    result = measure_latency(model, images, repeats=3)
    assert result.device == torch.cuda.get_device_name()
    assert result.peak_memory_bytes >= measure_latency(model.cpu(), IMAGES, repeats=1).peak_memory_bytes
