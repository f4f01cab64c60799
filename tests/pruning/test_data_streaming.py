"""Images decoded from files, in memory or streamed."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pruning.data import ImageSplit, Pixels, StreamedSplit, streaming
from pruning.data.decoding import AREA, ASPECT, Decoder, draw_crop, image_size
from pruning.data.files import scan
from pruning.errors import DataError

PIXELS = Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), padding=1, flip=True)


def write_image(path: Path, seed: int, width: int = 8, height: int = 6, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    Image.fromarray(np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def tree(tmp_path) -> Path:
    """Three classes with 5, 4 and 2 images of 8×6 pixels."""
    for label, (name, count) in enumerate({"cat": 5, "dög": 4, "emu": 2}.items()):
        for image in range(count):
            write_image(tmp_path / name / f"{image:02d}.png", seed=10 * label + image)
    return tmp_path


def stream(tree: Path, workers: int = 0, decoder: Decoder | None = None, pixels: Pixels = PIXELS) -> StreamedSplit:
    folders = scan(tree)
    return StreamedSplit(folders.files, folders.labels, decoder or Decoder(3, 6, 8), pixels, workers)


def everything(split: ImageSplit, **options) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*split.batches(3, generator=torch.Generator().manual_seed(4), **options), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_scanning_finds_every_image_at_any_depth_class_by_class(tree):
    write_image(tree / "cat" / "deeper" / "99.PNG", seed=99)
    write_image(tree / "cat" / "30.png", seed=30)
    (tree / "cat" / "notes.txt").write_text("no image")
    (tree / "labels.csv").write_text("no class")
    folders = scan(tree)
    assert folders.classes == ("cat", "dög", "emu")
    assert folders.labels.tolist() == [0] * 7 + [1] * 4 + [2] * 2
    found = [folders.files.path(image) for image in range(len(folders))]
    assert found == [*sorted(tree.rglob("cat/**/*.[pP]*")), *sorted(tree.glob("d*/*")), *sorted(tree.glob("emu/*"))]
    assert folders.files.sizes.tolist() == [path.stat().st_size for path in found]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "augment": True}])
def test_streamed_and_loaded_images_give_equal_batches(tree, options, workers):
    streamed = stream(tree, workers)
    for got, expected in zip(everything(streamed, **options), everything(streamed.loaded(), **options), strict=True):
        assert torch.equal(got, expected)


def test_loading_takes_no_more_threads_than_torch(tree, monkeypatch):
    taken = []

    class Pool(streaming.ThreadPoolExecutor):
        def __init__(self, threads):
            taken.append(threads)
            super().__init__(threads)

    monkeypatch.setattr(streaming, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    stream(tree).loaded()
    assert taken == [3]


def test_loaded_bytes_are_the_bytes_of_the_files(tree):
    loaded = stream(tree).loaded()
    for image, path in zip(loaded.images, sorted(tree.rglob("*.png")), strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))
    assert loaded.image_shape == stream(tree).image_shape == (3, 6, 8)


def test_random_crops_follow_the_generator_and_not_the_workers(tree):
    cropping, still = Decoder(3, 4, 4, resize=4, random_crop=True), Pixels(PIXELS.mean, PIXELS.std)
    alone, shared = (everything(stream(tree, workers, cropping, still), augment=True)[0] for workers in (0, 2))
    assert torch.equal(alone, shared)
    assert not torch.equal(alone, everything(stream(tree, 0, cropping, still))[0])


def test_streaming_leaves_the_global_generators_alone(tree):
    states = torch.get_rng_state(), random.getstate()
    everything(stream(tree, 2, Decoder(3, 4, 4, resize=4, random_crop=True)), shuffle=True, augment=True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_a_streamed_split_is_small_to_pickle_and_comes_back_whole(tree):
    split = stream(tree)
    copy = pickle.loads(pickle.dumps(split))
    assert torch.equal(everything(copy)[0], everything(split)[0])
    assert copy.digest() == split.digest()


def test_a_streamed_subset_takes_files_and_labels_together(tree):
    subset = stream(tree).subset(6, seed=1)
    assert len(subset) == 6
    names = [subset.files.path(image).parent.name for image in range(6)]
    assert names == [scan(tree).classes[label] for label in subset.labels]


def test_the_digest_knows_paths_sizes_and_decoding_but_not_where_the_tree_is(tree, tmp_path_factory):
    split = stream(tree)
    moved = tmp_path_factory.mktemp("elsewhere") / "tree"
    tree.rename(moved)
    assert stream(moved).digest() == split.digest()
    assert stream(moved, decoder=Decoder(3, 4, 4, resize=5)).digest() != split.digest()
    write_image(moved / "emu" / "00.png", seed=0, width=80)
    resized = stream(moved).digest()
    assert resized != split.digest()
    (moved / "emu" / "00.png").rename(moved / "emu" / "0.png")
    assert stream(moved).digest() != resized


def test_resizing_equals_the_usual_evaluation_transform(tmp_path):
    from pruning.models.torchvision_import import import_torchvision

    import_torchvision()
    from torchvision.transforms import CenterCrop, Compose, Resize

    for width, height in ((50, 37), (37, 50), (40, 40), (21, 90)):
        path = write_image(tmp_path / f"{width}.png", seed=width, width=width, height=height)
        expected = Compose([Resize(24), CenterCrop(21)])(Image.open(path))
        got = Decoder(3, 21, 21, resize=24).read(path)
        assert np.array_equal(got.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_gray_and_colour_files_become_what_was_asked_for(tmp_path):
    gray = write_image(tmp_path / "gray.png", seed=0, mode="L")
    colour = write_image(tmp_path / "colour.png", seed=0)
    assert torch.equal(Decoder(3, 6, 8).read(gray), Decoder(1, 6, 8).read(gray).expand(3, -1, -1))
    assert Decoder(1, 6, 8).read(colour).shape == (1, 6, 8)
    assert image_size(colour) == (6, 8)


@pytest.mark.parametrize(("width", "height"), [(30, 20), (20, 30), (500, 2), (1, 1)])
def test_drawn_crops_lie_inside_the_image_and_have_the_drawn_shape(width, height):
    for seed in range(200):
        left, top, right, bottom = draw_crop(width, height, random.Random(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if width > 8 and height > 8:
            columns, rows = right - left, bottom - top
            # each side is rounded by up to half a pixel
            assert (columns - 0.5) * (rows - 0.5) <= AREA[1] * width * height
            assert (columns + 0.5) * (rows + 0.5) >= AREA[0] * width * height
            assert (columns + 0.5) / (rows - 0.5) >= ASPECT[0]
            assert (columns - 0.5) / (rows + 0.5) <= ASPECT[1]


def test_small_drawn_crops_reach_every_side():
    boxes = [draw_crop(30, 20, random.Random(seed)) for seed in range(1000)]
    small = [
        (left, top, right, bottom) for left, top, right, bottom in boxes if right - left < 15 and bottom - top < 10
    ]
    assert [min(box[side] for box in small) for side in (0, 1)] == [0, 0]
    assert [max(box[side] for box in small) for side in (2, 3)] == [30, 20]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(tree, workers):
    (tree / "dög" / "02.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"^.*dög/02\.png: expected a readable image, got UnidentifiedImageError.*$"):
        everything(stream(tree, workers))
    with pytest.raises(DataError, match=r"dög/02\.png: expected a readable image"):
        stream(tree).loaded()


def test_a_truncated_image_is_refused(tree):
    path = tree / "dög" / "02.png"
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(DataError, match=r"02\.png: expected a readable image, got OSError"):
        stream(tree).loaded()


def test_images_of_other_sizes_are_refused_where_none_was_set(tree):
    write_image(tree / "emu" / "01.png", seed=0, width=9)
    with pytest.raises(DataError, match=r"01\.png: expected 8×6 pixels as in the first image, got 9×6; set `size`"):
        stream(tree).loaded()
    assert len(stream(tree, decoder=Decoder(3, 6, 6, resize=6)).loaded()) == 11


def test_a_size_larger_than_the_resized_image_is_refused():
    with pytest.raises(DataError, match="resize: expected at least the size 32, got 24"):
        Decoder(3, 32, 32, resize=24)


def test_a_folder_that_is_missing_or_has_no_classes_or_no_images_is_refused(tree):
    with pytest.raises(DataError, match="nowhere: expected a folder with one folder a class, got no folder"):
        scan(tree / "nowhere")
    with pytest.raises(DataError, match="cat: expected one folder a class, got none"):
        scan(tree / "cat")
    (tree / "fox").mkdir()
    with pytest.raises(DataError, match=r"fox: expected images \(.*\.png.*\), got none"):
        scan(tree)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cat", "dög", "emu", "fox"), "got none of fox$"),
        (("cat", "dög"), "got also emu$"),
        (("cat", "dög", "fox"), "got none of fox and also emu$"),
    ],
)
def test_classes_other_than_the_training_images_have_are_refused(tree, classes, message):
    with pytest.raises(DataError, match=message):
        scan(tree, classes)
