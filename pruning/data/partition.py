"""Three disjoint splits of what a source has."""

from __future__ import annotations

from pruning.data.images import ImageData, IndexedSplit
from pruning.data.stratified import draw_stratified
from pruning.errors import DataError


def divide(
    name: str,
    classes: tuple[str, ...],
    train: IndexedSplit,
    *,
    val: IndexedSplit | None = None,
    test: IndexedSplit | None = None,
    val_fraction: float,
    test_fraction: float = 0.0,
    train_images: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Make three disjoint splits: what the source does not bring is drawn from its training images, by class shares.

    Args:
        name: the source.
        classes: what the labels mean.
        train: the training images, of which `val` and `test` are taken where they are None.
        val: the source's own validation images.
        test: the source's own test images.
        val_fraction: part of the training images to take for `val`.
        test_fraction: part of the training images to take for `test`.
        train_images: how many of what is left to train on; None: all.
        seed: draws the images.

    Raises:
        DataError: a split would be empty, or there are fewer than `train_images`.
    """
    total = len(train)
    if test is None:
        test, train = _take_out(f"data source '{name}', test_fraction", train, total, test_fraction, seed)
    if val is None:
        val, train = _take_out(f"data source '{name}', val_fraction", train, total, val_fraction, seed)
    if train_images is not None:
        if train_images > len(train):
            raise DataError(f"data source '{name}', train_images: expected at most {len(train)}, got {train_images}")
        train = train.take(draw_stratified(train.labels, train_images, seed)[0])
    return ImageData.from_splits(name, classes, train, val, test)


def _take_out(
    place: str, pool: IndexedSplit, total: int, fraction: float, seed: int
) -> tuple[IndexedSplit, IndexedSplit]:
    count = round(total * fraction)
    if not 1 <= count < len(pool):
        left = f"{fraction} of {total} images is {count}, with {len(pool)} left"
        raise DataError(f"{place}: expected a part that leaves images on both sides, got {left}")
    drawn, rest = draw_stratified(pool.labels, count, seed)
    return pool.take(drawn), pool.take(rest)
