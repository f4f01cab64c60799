"""One image file as a network sees it, and back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pruning import DataError, intensities, load_data, read_picture


@pytest.fixture
def folder(tmp_path):
    """Twenty images of 12 × 10 pixels in two classes."""
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(draw.integers(256, size=(12, 10, 3), dtype=np.uint8)).save(
                tmp_path / "train" / name / f"{number}.png"
            )
    return tmp_path


def images_of(data):
    return next(iter(data.val.batches(len(data.val))))[0]


@pytest.mark.parametrize(
    "options", [{}, {"size": 8}, {"channels": 1}, {"max_device_bytes": 0, "workers": 0, "size": 6}]
)
def test_a_file_of_the_data_is_read_as_the_data_read_it(folder, options):
    data = load_data("image_folder", root=folder, **options)
    read = [read_picture(path, data) for path in sorted((folder / "train").rglob("*.png"))]
    for image in images_of(data):
        assert sum(torch.equal(image, other[0]) for other in read) == 1


def test_a_file_of_another_size_is_scaled_and_cut_to_the_centre(folder):
    data = load_data("image_folder", root=folder, size=8)
    columns = np.zeros((20, 60, 3), dtype=np.uint8)
    columns[:, 20:40] = 255  # the central square
    Image.fromarray(columns).save(folder / "wide.png")
    seen = intensities(read_picture(folder / "wide.png", data), data)
    assert seen.shape == (1, 3, 8, 8)
    assert seen[..., 1:-1].min() > 0.95


def test_data_that_cut_out_the_centre_of_larger_images_read_others_so_too(folder):
    data = load_data("image_folder", root=folder, size=8, max_device_bytes=0, workers=0)
    larger = replace(data.val, decoder=replace(data.val.decoder, resize=10))
    path = folder / "train" / "cat" / "0.png"
    seen = intensities(read_picture(path, replace(data, val=larger)), data)
    with Image.open(path) as image:  # its shorter side is 10 long
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, 2:10, 1:9] / 255
    assert torch.allclose(seen[0], expected, atol=1e-6)


def test_intensities_undo_the_normalisation(folder):
    data = load_data("image_folder", root=folder, size=8)
    pixels = data.val.images / 255
    assert torch.allclose(intensities(images_of(data), data), pixels, atol=1e-6)


class Foreign:
    """A split that does not say how its images were made."""

    def __len__(self):
        return 1


def test_data_that_do_not_say_how_they_are_normalised(folder):
    data = replace(load_data("image_folder", root=folder, size=8), val=Foreign())
    images = torch.tensor([[-2.0, 0.0, 2.0, 6.0], [5.0, 5.0, 5.0, 5.0]]).reshape(2, 1, 2, 2)
    assert intensities(images, data).flatten().tolist() == [0, 0.25, 0.5, 1, 0, 0, 0, 0]
    with pytest.raises(DataError, match="expected data of gray or RGB bytes to read it like, got 'image_folder'"):
        read_picture(folder / "train" / "cat" / "0.png", data)


def test_a_file_that_is_no_image_is_refused(folder):
    (folder / "no.png").write_text("no")
    with pytest.raises(DataError, match=r"no\.png: expected a readable image"):
        read_picture(folder / "no.png", load_data("image_folder", root=folder))
