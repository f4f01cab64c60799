"""Image files in class folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Files:
    """Image files under one folder, compact enough for millions.

    Attributes:
        root: the folder.
        paths: encoded paths below `root`, bytes `[images]`.
        sizes: bytes of each file, int64 `[images]`.
    """

    root: Path
    paths: NDArray[np.bytes_]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, image: int) -> Path:
        """Return where an image is."""
        return self.root / os.fsdecode(bytes(self.paths[image]))

    def take(self, images: Tensor) -> Files:
        """Return the files with these indices, int64 `[images]`."""
        chosen = images.numpy()
        return Files(self.root, self.paths[chosen], self.sizes[chosen])


@dataclass(frozen=True, eq=False)
class ClassFolders:
    """The image files of one folder that has a folder for each class.

    Attributes:
        classes: names of the class folders, sorted.
        files: every image, class by class.
        labels: index of the class of each image, int64 `[images]`.
    """

    classes: tuple[str, ...]
    files: Files
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def scan(folder: Path, classes: tuple[str, ...] | None = None) -> ClassFolders:
    """List the images under `folder/<class>/`, at any depth; other files are passed over.

    Args:
        folder: the folder that has the class folders.
        classes: the classes it must have; None: any.

    Raises:
        DataError: no such folder, no classes, a class without images, or other classes than asked for.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with one folder a class, got no folder")
    found = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    if not found:
        raise DataError(f"{folder}: expected one folder a class, got none")
    if classes is not None and found != classes:
        raise DataError(f"{folder}: expected the classes of the training images, got {_differences(found, classes)}")
    return _list_images(folder, found)


def _differences(found: tuple[str, ...], classes: tuple[str, ...]) -> str:
    missing, more = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    parts = [f"none of {', '.join(missing)}"] if missing else []
    return " and ".join([*parts, f"also {', '.join(more)}"] if more else parts)


def _list_images(folder: Path, classes: tuple[str, ...]) -> ClassFolders:
    paths, sizes, labels = list[bytes](), list[int](), list[int]()
    for label, name in enumerate(classes):
        before = len(paths)
        for entry in _images(folder / name):
            paths.append(os.fsencode(os.path.relpath(entry.path, folder)))
            sizes.append(entry.stat().st_size)
        if len(paths) == before:
            raise DataError(f"{folder / name}: expected images ({', '.join(SUFFIXES)}), got none")
        labels += [label] * (len(paths) - before)
    files = Files(folder, np.array(paths, dtype=np.bytes_), np.array(sizes, dtype=np.int64))
    return ClassFolders(classes, files, torch.tensor(labels))


def _images(folder: Path) -> Iterator[os.DirEntry[str]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _images(Path(entry.path))
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry
