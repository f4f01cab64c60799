"""The published ResNet-20 and real images, unpacked once, for tests that need them."""

import os
import tarfile
from pathlib import Path

import pytest
from filelock import FileLock

from pruning import ModelSpec, build_model, load_data, load_weights

IMAGES, WEIGHTS = "cifar10_sample_png.tar.xz", "resnet20-12fca82f.th"


@pytest.fixture(scope="session")
def published():
    """The folder with images and checkpoints."""
    place = Path(os.environ.get("PRUNING_TEST_DATA", ""))
    for file in (IMAGES, WEIGHTS):
        if not (place / file).is_file():
            pytest.skip(f"PRUNING_TEST_DATA names no folder with {file}")
    return place


@pytest.fixture(scope="session")
def cifar_folder(published, tmp_path_factory):
    """6,187 images of CIFAR-10 as files, unpacked by whichever process of the tests comes first."""
    own = tmp_path_factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cifar"
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            part = tmp_path_factory.mktemp("cifar_part")
            with tarfile.open(published / IMAGES) as archive:
                archive.extractall(part, filter="data")
            part.rename(root)
    return root


@pytest.fixture(scope="session")
def cifar(cifar_folder):
    """The images, loaded."""
    return load_data("image_folder", root=cifar_folder, workers=0)


@pytest.fixture(scope="session")
def resnet20(published):
    """The published network; who changes it takes a copy."""
    model = build_model(ModelSpec(name="resnet20"))
    load_weights(model, published / WEIGHTS)
    return model.eval()
