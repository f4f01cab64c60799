"""Running out of memory: what is it, and how work that needs no training goes on with fewer images."""

from __future__ import annotations

import copy
import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scarce import TOLD, Scarce
from three_blocks import make_net, make_split
from torch import nn

from pruning import latency, memory
from pruning.batchnorm import recalibrate
from pruning.finetune import evaluate
from pruning.latency import measure_latency
from pruning.memory import BatchSizeWarning, DeviceMemoryError, Portions, is_out_of_memory, parts_of, told_briefly


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Nothing that an attempt leaves needs the collector, which is slow."""
    monkeypatch.setattr(memory.gc, "collect", lambda: 0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(TOLD),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_failed_allocations_are_known_by_type_or_text(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        ValueError("out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_none(error):
    assert not is_out_of_memory(error)


def test_an_allocation_that_really_fails_is_known():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)


def test_an_error_is_told_without_torch_s_advice():
    assert told_briefly(torch.OutOfMemoryError(TOLD)) == "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert told_briefly(RuntimeError("")) == "RuntimeError"


@given(images=st.integers(1, 40), size=st.integers(1, 40))
def test_parts_are_few_small_and_nearly_equal(images, size):
    batch = torch.arange(images)
    parts = parts_of(batch, size)
    lengths = [len(part) for part in parts]
    assert torch.cat(parts).equal(batch)
    assert len(parts) == -(-images // size)
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


# ── halving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def limited(most, tried):
    def work(size):
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError(TOLD)
        return size

    return work


@pytest.mark.parametrize(
    ("images", "most", "tried"),
    [(128, 128, [128]), (128, 40, [128, 64, 32]), (7, 3, [7, 4, 2]), (5, 1, [5, 3, 2, 1])],
)
def test_the_size_is_halved_until_it_fits_and_kept(images, most, tried):
    portions, seen, undone = Portions("here"), [], []
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        first = portions.run(images, limited(most, seen), lambda: undone.append(len(seen)))
        assert seen == tried
        assert undone == list(range(1, len(tried)))
        assert portions.run(images, limited(most, seen)) == first == tried[-1]
    assert seen == [*tried, first]
    told = f"here: memory does not hold {images} images at a time; goes on with {first}"
    assert [str(note.message) for note in notes] == ([told] if len(tried) > 1 else [])
    assert all(note.category is BatchSizeWarning for note in notes)


def test_a_short_batch_that_fits_says_nothing_of_longer_ones():
    portions, seen = Portions("here"), []
    portions.run(3, limited(8, seen))
    with pytest.warns(BatchSizeWarning, match="does not hold 16 images at a time; goes on with 8"):
        portions.run(16, limited(8, seen))
    portions.run(3, limited(8, seen))
    portions.run(9, limited(8, seen))
    assert seen == [3, 16, 8, 3, 8]


@pytest.mark.parametrize(("least", "fewest"), [(1, "one image"), (2, "2 images")])
def test_the_least_size_that_is_too_much_is_one_clear_line(least, fewest):
    told = f"^here: expected memory for {fewest} at a time, got: CUDA out of memory. Tried to allocate 2.00 GiB$"
    seen = []
    with pytest.raises(DeviceMemoryError, match=told) as failed:
        Portions("here", least=least).run(5, limited(0, seen))
    assert seen[-1] == least
    assert failed.value.__context__ is None  # it would hold the tensors of the attempt


def test_other_errors_pass_at_once():
    def work(size):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match=r"^something else$"):
        Portions("here").run(8, work, lambda: pytest.fail("undone"))


# ── evaluation, recalibration, latency ───────────────────────────────────────────────────────────────────────────────


def scarce_net(most, **options):
    model = make_net()
    model.drop = Scarce(most, **options)
    return model


@pytest.mark.parametrize("most", [1, 3, 7])
def test_evaluation_in_parts_finds_the_same(most):
    model, split = scarce_net(most), make_split(20)
    with pytest.warns(BatchSizeWarning, match="^evaluate: memory does not hold 8 images at a time; goes on with"):
        found = evaluate(model, split, batch_size=8)
    expected = evaluate(make_net(), split, batch_size=8)
    assert found.accuracy == expected.accuracy
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert max(size for size in model.drop.seen if size <= most) > most / 2


def test_evaluation_of_what_does_not_fit_at_all_is_one_line():
    with pytest.raises(DeviceMemoryError, match=r"^evaluate: expected memory for one image at a time, got: CUDA out"):
        evaluate(scarce_net(0), make_split(4))


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("fails", [(), (4,)])
def test_recalibration_begins_again_with_smaller_batches(fails):
    model, expected, split = scarce_net(6, fails=fails), make_net(), make_split(24)
    with pytest.warns(BatchSizeWarning, match="^recalibrate: memory does not hold 20 images at a time; goes on with"):
        recalibrate(model, split, images=20, batch_size=256, augment=True, seed=3)
    fitted = 3 if fails else 5
    assert model.drop.seen[:4] == [20, 10, 5, 5]
    assert set(model.drop.seen[5:]) <= {3, 5, 2}
    recalibrate(expected, split, images=20, batch_size=fitted, augment=True, seed=3)
    torch.testing.assert_close(statistics(model), statistics(expected), rtol=0, atol=0)


def test_recalibration_that_does_not_fit_leaves_the_statistics_as_they_were():
    model = scarce_net(1)
    before = statistics(model)
    with pytest.raises(DeviceMemoryError, match=r"^recalibrate: expected memory for 2 images at a time"):
        recalibrate(model, make_split(24))
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)


def test_latency_of_a_batch_in_parts_is_that_of_all_parts(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    model = nn.Sequential(Scarce(2), nn.Conv2d(3, 4, 1))
    with pytest.warns(BatchSizeWarning, match="^latency: memory does not hold 5 images at a time; goes on with 2"):
        found = measure_latency(model, torch.zeros(5, 3, 4, 4), repeats=3, warmup=0)
    assert (found.batch, found.median_ms) == (5, 1000)
    assert model[0].seen == [5, 3, *[2, 2, 1] * 4]  # three passes that count, one for the memory
    whole = measure_latency(copy.deepcopy(model)[1:], torch.zeros(5, 3, 4, 4), repeats=1)
    assert found.peak_memory_bytes < whole.peak_memory_bytes
