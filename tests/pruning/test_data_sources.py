"""The sources: what each loads, and what it says when it cannot."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pruning.data import DATA, ImageData, Pixels, StreamedSplit, TensorSplit, cifar, load_data
from pruning.errors import DataError, OptionError, UnknownNameError


def write_tree(root: Path, parts: dict[str, int], classes: str = "ab") -> Path:
    """Write `parts[name]` images of 8×8 pixels for every class."""
    pixels = np.random.default_rng(0)
    for part, count in parts.items():
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for image in range(count):
                content = pixels.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(content).save(root / part / name / f"{image}.png")
    return root


def sizes(data: ImageData) -> list[int]:
    return [len(split) for split in (data.train, data.val, data.test)]


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_every_source_is_known_by_name():
    assert DATA.names() == ("cifar10", "cifar100", "digits", "image_folder", "imagenet")


@pytest.mark.parametrize("name", DATA.names())
def test_every_source_takes_seed_normalisation_and_fewer_training_images(name):
    assert {"seed", "mean", "std", "val_fraction", "train_images"} <= set(DATA.options(name))


def test_digits_are_all_there_in_three_disjoint_splits():
    data = load_data("digits")
    assert sum(sizes(data)) == 1797
    assert sizes(data)[1:] == [270, 270]
    assert data.classes == tuple("0123456789")
    assert data.image_shape == (3, 16, 16)
    assert data.train.pixels == Pixels((0.305,) * 3, (0.32,) * 3, padding=2, flip=False)
    parts = [rows(split.images) for split in (data.train, data.val, data.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_digits_are_normalised_and_their_gray_is_repeated():
    images, _ = next(load_data("digits").train.batches(2000))
    assert images.mean().abs() < 0.02  # the mean of a part is near that of all
    assert images.std() == pytest.approx(1, abs=0.02)
    assert torch.equal(images[:, 0], images[:, 2])


def test_digits_of_their_own_size_have_their_own_gray_values():
    from sklearn.datasets import load_digits

    tiny = load_data("digits", size=8, channels=1, mean=[0], std=[1])
    assert tiny.image_shape == (1, 8, 8)
    images, _ = next(tiny.val.batches(10))
    assert rows((images[:, 0] * 16).round().double()) <= rows(torch.from_numpy(load_digits().images))


def test_digits_follow_their_seed():
    data = load_data("digits", seed=1)
    assert data.fingerprint == load_data("digits", seed=1).fingerprint != load_data("digits").fingerprint
    assert sizes(load_data("digits", train_images=100)) == [100, 270, 270]


def test_loaded_data_survives_pickling():
    data = load_data("digits", train_images=100)
    copy = pickle.loads(pickle.dumps(data))
    assert (
        copy.fingerprint
        == data.fingerprint
        == ImageData.from_splits(copy.name, copy.classes, copy.train, copy.val, copy.test).fingerprint
    )


def test_an_image_folder_with_three_parts_is_taken_as_it_is(tmp_path):
    data = load_data("image_folder", root=str(write_tree(tmp_path, {"train": 5, "val": 2, "test": 3})))
    assert sizes(data) == [10, 4, 6]
    assert data.classes == ("a", "b")
    assert data.image_shape == (3, 8, 8)
    assert data.train.pixels == Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), padding=1, flip=True)


def test_what_an_image_folder_does_not_bring_is_drawn_from_its_training_images(tmp_path):
    root = write_tree(tmp_path, {"train": 10})
    data = load_data("image_folder", root=root, val_fraction=0.2, test_fraction=0.1)
    assert sizes(data) == [14, 4, 2]
    assert [split.labels.bincount().tolist() for split in (data.train, data.val, data.test)] == [[7, 7], [2, 2], [1, 1]]
    parts = [rows(split.images) for split in (data.train, data.val, data.test)]
    assert len(set.union(*parts)) == 20


def test_an_image_folder_that_does_not_fit_is_streamed_and_gives_the_same_batches(tmp_path):
    root = write_tree(tmp_path, {"train": 10, "test": 2})
    bytes_ = 24 * 3 * 8 * 8
    loaded = load_data("image_folder", root=root, max_device_bytes=bytes_)
    streamed = load_data("image_folder", root=root, max_device_bytes=bytes_ - 1, workers=0)
    assert isinstance(loaded.train, TensorSplit)
    assert isinstance(streamed.train, StreamedSplit)
    for part in ("train", "val", "test"):
        for got, expected in zip(getattr(streamed, part).batches(4), getattr(loaded, part).batches(4), strict=True):
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])


def test_an_image_folder_is_resized_and_turned_gray_on_request(tmp_path):
    data = load_data(
        "image_folder", root=write_tree(tmp_path, {"train": 10}), size=4, channels=1, padding=2, flip=False
    )
    assert data.image_shape == (1, 4, 4)
    assert data.train.pixels == Pixels((0.449,), (0.226,), padding=2)


def test_an_image_folder_says_what_is_wrong_with_it(tmp_path):
    with pytest.raises(DataError, match=r"train: expected a folder with one folder a class, got no folder"):
        load_data("image_folder", root=tmp_path)
    write_tree(tmp_path, {"train": 3})
    write_tree(tmp_path, {"test": 3}, classes="ac")
    with pytest.raises(DataError, match=r"test: expected the classes of the training images, got none of b and also c"):
        load_data("image_folder", root=tmp_path)


def test_imagenet_opens_its_validation_folder_as_test_and_draws_val_from_train(tmp_path):
    root = write_tree(tmp_path, {"train": 10, "val": 3})
    data = load_data("imagenet", root=root, size=7, val_fraction=0.2, workers=0)
    assert sizes(data) == [16, 4, 6]
    assert all("/val/" in str(data.test.files.path(image)) for image in range(6))
    assert all("/train/" in str(data.val.files.path(image)) for image in range(4))
    assert data.train.decoder.resize == 8
    images, _ = next(data.train.batches(5, augment=True, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (5, 3, 7, 7)
    with pytest.raises(DataError, match="resize: expected at least the size 224, got 100"):
        load_data("imagenet", root=root, resize=100)


class FakeCIFAR:
    """What torchvision's data set offers, with 40 + 10 images."""

    classes = ("cat", "dog")

    def __init__(self, root, train, download):
        if not download:
            raise RuntimeError("Dataset not found or corrupted.")
        count = 40 if train else 10
        self.data = np.random.default_rng(count).integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        self.targets = [image % 2 for image in range(count)]


@pytest.fixture
def fake_torchvision(monkeypatch):
    datasets = SimpleNamespace(CIFAR10=FakeCIFAR, CIFAR100=FakeCIFAR)
    monkeypatch.setattr(cifar, "import_torchvision", lambda: SimpleNamespace(datasets=datasets))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_draws_val_from_train_and_keeps_test(fake_torchvision, name):
    data = load_data(name, download=True, val_fraction=0.25)
    assert sizes(data) == [30, 10, 10]
    assert data.image_shape == (3, 32, 32)
    assert data.train.pixels.padding == 4
    assert data.train.pixels.flip
    expected = FakeCIFAR("", train=False, download=True).data
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), expected)
    assert data.test.labels.tolist() == [0, 1] * 5


def test_an_absent_cifar_names_the_options_that_help(tmp_path):
    message = r"'cifar10': expected CIFAR10 in '.*', got: .*; set `root` to where it is, or `download` to true$"
    with pytest.raises(DataError, match=message):
        load_data("cifar10", root=tmp_path)


def test_a_cifar_that_cannot_be_fetched_says_so(monkeypatch, tmp_path):
    def refuse(root, train, download):
        raise OSError("no route to host")

    datasets = SimpleNamespace(CIFAR100=refuse)
    monkeypatch.setattr(cifar, "import_torchvision", lambda: SimpleNamespace(datasets=datasets))
    with pytest.raises(DataError, match=r"expected CIFAR100 in '.*', got: no route to host; cannot be fetched$"):
        load_data("cifar100", root=tmp_path, download=True)


def test_unknown_names_and_options_offer_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown data source 'digit'; did you mean 'digits'"):
        load_data("digit")
    with pytest.raises(OptionError, match="unknown option 'sise'; did you mean 'size'"):
        load_data("digits", sise=3)
    with pytest.raises(OptionError, match="missing a required argument: 'root'"):
        load_data("image_folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.5}, "'digits', val_fraction: expected less than 1, got 1.5"),
        ({"size": "large"}, "'digits', size: expected a valid integer.*, got 'large'"),
        ({"mean": [0.5, "x", 0.5]}, "'digits', mean.1: expected a valid number.*, got 'x'"),
        ({"seed": -1}, "'digits', seed: expected greater than or equal to 0, got -1"),
    ],
)
def test_option_values_that_cannot_be_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        load_data("digits", **options)


@pytest.fixture
def own(monkeypatch):
    """A module of the caller's."""
    module = ModuleType("own_images")
    monkeypatch.setitem(sys.modules, "own_images", module)
    digits = load_data("digits", train_images=20)
    module.images = lambda train_images=20: load_data("digits", train_images=train_images)
    module.number = 3
    module.nothing = lambda: None
    module.mistaken = lambda **changes: ImageData(**{**vars(digits), **changes})
    return module


def test_a_function_of_the_callers_is_a_source(own):
    assert len(load_data("own_images:images", train_images=30).train) == 30
    assert load_data("own_images:mistaken", name="mine").name == "mine"


def test_a_function_of_the_callers_is_checked(own):
    with pytest.raises(DataError, match="cannot import 'no_such_module'"):
        load_data("no_such_module:images")
    with pytest.raises(UnknownNameError, match="data source 'own_images:image'; did you mean 'own_images:images'"):
        load_data("own_images:image")
    with pytest.raises(DataError, match="expected a function 'number' in 'own_images', got 3"):
        load_data("own_images:number")
    with pytest.raises(OptionError, match="got an unexpected keyword argument 'size'"):
        load_data("own_images:images", size=3)
    with pytest.raises(DataError, match="expected an ImageData, got NoneType"):
        load_data("own_images:nothing")
    with pytest.raises(
        DataError, match=r"train: expected images of shape \(1, 8, 8\), torch.float32, got \(3, 16, 16\)"
    ):
        load_data("own_images:mistaken", image_shape=(1, 8, 8))
    with pytest.raises(DataError, match=r"train: expected labels from 0 to 0, torch.int64, got \["):
        load_data("own_images:mistaken", classes=("zero",))
    empty = own.images().val.take(torch.empty(0, dtype=torch.int64))
    with pytest.raises(DataError, match="val: expected images, got none"):
        load_data("own_images:mistaken", val=empty)


@pytest.mark.data
def test_the_cifar_sample_loads_whole(cifar_folder):
    data = load_data("image_folder", root=cifar_folder, val_fraction=0.1)
    assert sizes(data) == [4653, 517, 1017]
    assert len(data.classes) == 10
    assert data.image_shape == (3, 32, 32)
    assert data.train.pixels.padding == 4
    assert isinstance(data.train, TensorSplit)
