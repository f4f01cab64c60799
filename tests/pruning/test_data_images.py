"""Splits, batches and augmentation of images in memory."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning.data import ImageData, ImageSplit, Pixels, TensorSplit
from pruning.data.partition import divide
from pruning.data.stratified import draw_stratified
from pruning.errors import DataError

PIXELS = Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), padding=2, flip=True)
label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_split(count: int = 23, pixels: Pixels = PIXELS) -> TensorSplit:
    """Random images whose first byte is their number, so each can be told from every other."""
    images = torch.randint(256, (count, 3, 6, 5), generator=seeded(1), dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return TensorSplit(images, torch.arange(count) % 3, pixels)


def numbers(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    """Which images came, read off their first byte."""
    first = torch.cat([images for images, _ in batches])[:, 0, 0, 0]
    return (first * PIXELS.std[0] + PIXELS.mean[0]).mul(255).round().int().tolist()


def shift_and_mirror_one(image: Tensor, padding: int, row: int, column: int, mirrored: bool) -> Tensor:
    """The definition: pixel by pixel, black outside the image."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y + row - padding, x + column - padding
            if 0 <= from_y < height and 0 <= from_x < width:
                result[:, y, width - 1 - x if mirrored else x] = image[:, from_y, from_x]
    return result


@given(labels=label_lists, share=st.floats(0.01, 1), seed=st.integers(0, 3))
def test_a_stratified_draw_gives_each_class_its_share_to_within_one_image(labels, share, seed):
    labels = torch.tensor(labels)
    count = max(1, round(share * len(labels)))
    drawn, _ = draw_stratified(labels, count, seed)
    assert len(drawn) == count
    for label in labels.unique():
        exact = count * (labels == label).sum() / len(labels)
        assert abs((labels[drawn] == label).sum() - exact) < 1


@given(labels=label_lists, seed=st.integers(0, 3))
def test_a_stratified_draw_and_its_rest_have_every_image_once(labels, seed):
    drawn, rest = draw_stratified(torch.tensor(labels), (len(labels) + 1) // 2, seed)
    assert sorted([*drawn.tolist(), *rest.tolist()]) == list(range(len(labels)))
    assert rest.tolist() == sorted(rest.tolist())


def test_a_stratified_draw_follows_its_seed_and_mixes_the_classes():
    labels = torch.arange(10).repeat_interleave(20)
    drawn = draw_stratified(labels, 100, seed=0)[0]
    assert torch.equal(drawn, draw_stratified(labels, 100, seed=0)[0])
    assert not torch.equal(drawn, draw_stratified(labels, 100, seed=1)[0])
    assert labels[drawn].tolist() != sorted(labels[drawn].tolist())


@pytest.mark.parametrize("count", [0, 4])
def test_a_draw_of_no_images_or_of_too_many_is_refused(count):
    with pytest.raises(DataError, match=f"expected 1 to 3, got {count}"):
        draw_stratified(torch.tensor([0, 1, 2]), count, seed=0)


def test_shifting_and_mirroring_a_batch_equals_doing_it_pixel_by_pixel():
    images = make_split().images
    shifts = PIXELS.draw(len(images), seeded(3))
    assert shifts.mirrored.any()
    assert not shifts.mirrored.all()
    assert {*shifts.rows.tolist()} == {*shifts.columns.tolist()} == {0, 1, 2, 3, 4}
    drawn = zip(images, shifts.rows.tolist(), shifts.columns.tolist(), shifts.mirrored.tolist(), strict=True)
    expected = [shift_and_mirror_one(image, 2, row, column, mirrored) for image, row, column, mirrored in drawn]
    assert torch.equal(shifts.apply(images), torch.stack(expected))


def test_augmentation_that_neither_shifts_nor_mirrors_changes_nothing():
    images = make_split().images
    still = Pixels(PIXELS.mean, PIXELS.std).draw(len(images), seeded(0))
    assert torch.equal(still.apply(images), images)


def test_normalised_batches_equal_the_definition():
    split = make_split()
    images = torch.cat([images for images, _ in split.batches(10)])
    for channel, (mean, std) in enumerate(zip(PIXELS.mean, PIXELS.std, strict=True)):
        expected = (split.images[:, channel].double() / 255 - mean) / std
        # float32 has 24 bits: 6e-8 of a value below 10
        assert torch.allclose(images[:, channel].double(), expected, rtol=0, atol=1e-6)
    assert images.dtype == torch.float32


def test_batches_have_every_image_once_in_order_with_its_label():
    split = make_split(23)
    batches = list(split.batches(10))
    assert [len(images) for images, _ in batches] == [10, 10, 3]
    assert numbers(batches) == list(range(23))
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)


def test_shuffled_batches_have_every_image_once_with_its_label():
    split = make_split(23)
    batches = list(split.batches(10, shuffle=True, generator=seeded(0)))
    order = numbers(batches)
    assert sorted(order) == list(range(23))
    assert order != list(range(23))
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels[order])


def test_augmented_batches_are_the_shuffled_images_shifted_as_drawn():
    split = make_split(23)
    got = torch.cat([images for images, _ in split.batches(7, shuffle=True, augment=True, generator=seeded(5))])
    generator = seeded(5)
    order = torch.randperm(23, generator=generator)
    expected = PIXELS.normalise(PIXELS.draw(23, generator).apply(split.images[order]))
    assert torch.equal(got, expected)


def test_the_batch_size_does_not_change_the_augmented_images():
    one, other = (
        torch.cat([images for images, _ in make_split().batches(size, shuffle=True, augment=True, generator=seeded(5))])
        for size in (4, 23)
    )
    assert torch.equal(one, other)


def test_everything_is_drawn_in_the_call_and_nothing_from_the_global_generator():
    split, generator, state = make_split(), seeded(0), torch.get_rng_state()
    batches = split.batches(4, shuffle=True, augment=True, generator=generator)
    drawn = generator.get_state()
    list(batches)
    assert torch.equal(generator.get_state(), drawn)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_leave_the_stored_bytes_alone():
    split = make_split()
    before = split.images.clone()
    list(split.batches(4, shuffle=True, augment=True, generator=seeded(0)))
    assert torch.equal(split.images, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_batches_of_the_cpu():
    split = make_split()
    options = {"shuffle": True, "augment": True}
    on_cpu = list(split.batches(4, generator=seeded(0), **options))
    on_gpu = list(split.batches(4, generator=seeded(0), device="cuda", **options))
    for (expected, expected_labels), (images, labels) in zip(on_cpu, on_gpu, strict=True):
        assert images.is_cuda
        assert labels.is_cuda
        assert torch.equal(labels.cpu(), expected_labels)
        # division may round differently in the last place
        assert torch.allclose(images.cpu(), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_split_out_of_shared_memory_is_not_copied_and_gives_the_same_batches():
    split, buffers = make_split(), []
    sent = pickle.dumps(split, protocol=5, buffer_callback=buffers.append)
    memory = [memoryview(bytes(buffer.raw())) for buffer in buffers]  # bytes cannot be written to
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # not just the first time
    arrived = pickle.loads(sent, buffers=memory)
    torch.set_warn_always(before)
    assert arrived.images.data_ptr() == np.frombuffer(memory[0], np.uint8).ctypes.data
    for one, other in zip(split.batches(4, device="cpu"), arrived.batches(4, device="cpu"), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_the_bytes_move_to_a_device_once_and_the_copy_is_not_pickled():
    split = make_split()
    list(split.batches(4, device="cpu"))
    moved = split._on(torch.device("cpu"))
    assert split._on(torch.device("cpu")) is moved
    copy = pickle.loads(pickle.dumps(split))
    assert not copy._moved
    assert torch.equal(copy.images, split.images)


def test_a_subset_is_drawn_by_class_shares_and_seed():
    split = make_split(24)
    subset = split.subset(12, seed=1)
    assert subset.labels.bincount().tolist() == [4, 4, 4]
    assert subset.digest() == split.subset(12, seed=1).digest() != split.subset(12, seed=2).digest()
    for image, label in zip(subset.images, subset.labels, strict=True):
        assert split.labels[int(image[0, 0, 0])] == label


def test_a_subset_of_more_images_than_there_are_is_all_of_them():
    assert len(make_split(24).subset(100, seed=0)) == 24


def test_a_tensor_split_is_an_image_split():
    assert isinstance(make_split(), ImageSplit)


def test_dividing_gives_three_disjoint_stratified_splits_that_follow_the_seed():
    def parts(seed: int) -> tuple[ImageData, list[list[int]]]:
        data = divide("mine", ("a", "b", "c"), make_split(60), val_fraction=0.2, test_fraction=0.1, seed=seed)
        return data, [numbers(list(split.batches(60))) for split in (data.train, data.val, data.test)]

    data, (train, val, test) = parts(seed=0)
    assert sorted(train + val + test) == list(range(60))
    assert [len(data.train), len(data.val), len(data.test)] == [42, 12, 6]
    assert [split.labels.bincount().tolist() for split in (data.train, data.val, data.test)] == [
        [14] * 3,
        [4] * 3,
        [2] * 3,
    ]
    assert parts(seed=0)[1] == [train, val, test]
    assert parts(seed=0)[0].fingerprint == data.fingerprint != parts(seed=1)[0].fingerprint
    assert parts(seed=1)[1][1] != val


def test_splits_that_the_source_brings_are_kept_whole():
    own, pool = make_split(9), make_split(60)
    data = divide("mine", ("a", "b", "c"), pool, test=own, val_fraction=0.2)
    assert data.test is own
    assert [len(data.train), len(data.val)] == [48, 12]
    data = divide("mine", ("a", "b", "c"), pool, test=own, val=own, val_fraction=0.2)
    assert data.train is pool


def test_training_on_fewer_images_leaves_val_and_test_as_they_are():
    pool = make_split(60)
    whole = divide("mine", ("a", "b", "c"), pool, val_fraction=0.2, test_fraction=0.1)
    few = divide("mine", ("a", "b", "c"), pool, val_fraction=0.2, test_fraction=0.1, train_images=6)
    assert few.train.labels.bincount().tolist() == [2, 2, 2]
    assert few.val.digest() == whole.val.digest()
    assert few.test.digest() == whole.test.digest()
    assert few.fingerprint != whole.fingerprint
    with pytest.raises(DataError, match="train_images: expected at most 42, got 43"):
        divide("mine", ("a", "b", "c"), pool, val_fraction=0.2, test_fraction=0.1, train_images=43)


@pytest.mark.parametrize(("val", "test"), [(0.001, 0.1), (0.6, 0.5), (0.9, 0.1)])
def test_fractions_that_leave_a_split_empty_are_refused(val, test):
    with pytest.raises(DataError, match=r"'mine', val_fraction: expected a part that leaves images on both sides"):
        divide("mine", ("a", "b", "c"), make_split(60), val_fraction=val, test_fraction=test)


def test_the_fingerprint_knows_every_byte_label_and_number_of_the_normalisation():
    def fingerprint(split: TensorSplit) -> str:
        return divide("mine", ("a", "b", "c"), split, val_fraction=0.2, test_fraction=0.1).fingerprint

    split = make_split(60)
    byte, label = split.images.clone(), split.labels.clone()
    byte[7, 1, 2, 3] ^= 1
    label[7] = (label[7] + 1) % 3
    others = [
        TensorSplit(byte, split.labels, PIXELS),
        TensorSplit(split.images, label, PIXELS),
        make_split(60, Pixels(PIXELS.mean, (0.2, 0.25, 0.31), padding=2, flip=True)),
    ]
    assert len({fingerprint(split), *map(fingerprint, others)}) == 4
    assert fingerprint(make_split(60)) == fingerprint(split)


def test_images_that_are_no_bytes_are_refused():
    with pytest.raises(DataError, match=r"expected bytes \[images, channels, height, width\], got \(2, 3, 4, 4\)"):
        TensorSplit(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), PIXELS)


def test_labels_that_do_not_fit_the_images_are_refused():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"labels: expected 2 of torch.int64, got \(3,\)"):
        TensorSplit(images, torch.zeros(3, dtype=torch.int64), PIXELS)
    with pytest.raises(DataError, match=r"labels: expected 2 of torch.int64, got \(2,\) of torch.float32"):
        TensorSplit(images, torch.zeros(2), PIXELS)


def test_normalisation_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="expected 3 means and stds, one a channel, got 1"):
        make_split(pixels=Pixels((0.5,), (0.2,)))
    with pytest.raises(DataError, match="expected a mean and a positive std for each channel"):
        Pixels((0.5, 0.5), (0.2, 0.0))
    with pytest.raises(DataError, match="expected a mean and a positive std for each channel"):
        Pixels((0.5, 0.5), (0.2,))
