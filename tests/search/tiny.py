"""A network and images so small that a trial takes a tenth of a second; named as `tiny:network` in experiments."""

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import ray
import torch
from torch import nn

from pruning import (
    CRITERIA,
    ModelSpec,
    Policy,
    build_model,
    find_groups,
    load_data,
    load_pruned,
    prune,
    save_pruned,
    save_weights,
)
from search.config import parse_experiment

IMAGE_SHAPE = (1, 8, 8)


class Network(nn.Module):
    """Two convolutions: two inner groups, `first` and `second`."""

    def __init__(self, classes, channels, widths):
        super().__init__()
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(widths[0])
        self.second = nn.Conv2d(widths[0], widths[1], 3, stride=2, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(widths[1])
        self.classifier = nn.Linear(widths[1], classes)

    def forward(self, images):
        features = self.first_norm(self.first(images)).relu()
        features = self.second_norm(self.second(features)).relu()
        return self.classifier(features.mean(dim=(2, 3)))


class Residual(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class Blocks(nn.Module):
    """A stem and residual blocks: one coupled group, `stem`, and an inner one in each block."""

    def __init__(self, classes, count):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(*(Residual(8, 6) for _ in range(count)))
        self.classifier = nn.Linear(8, classes)

    def forward(self, images):
        return self.classifier(self.blocks(self.norm(self.stem(images)).relu()).mean(dim=(2, 3)))


class Fragile(Network):
    """Cannot be trained with an odd number of channels in front."""

    def forward(self, images):
        if torch.is_grad_enabled() and self.first.out_channels % 2:
            raise RuntimeError("odd widths\nare not for me")
        return super().forward(images)


class Mortal(Network):
    """Takes its process with it in the middle of the training, once: a file tells that it did."""

    def __init__(self, classes, grave):
        super().__init__(classes, 1, (8, 16))
        self.grave, self.steps = Path(grave), 0

    def forward(self, images):
        if self.training and torch.is_grad_enabled():
            self.steps += 1
            if self.steps > 10 and not self.grave.exists():
                self.grave.touch()
                os._exit(1)
        return super().forward(images)


class Bound(Network):
    """Runs in one process; elsewhere it sleeps for a minute, or takes the process with it."""

    def __init__(self, classes, home, sleeps):
        super().__init__(classes, 1, (8, 16))
        self.home, self.sleeps = home, sleeps

    def forward(self, images):
        if os.getpid() != self.home:
            if not self.sleeps:
                os._exit(1)
            time.sleep(60)
        return super().forward(images)


class Bare(nn.Module):
    """A convolution without a norm: a group, `first`, that not every criterion can rank."""

    def __init__(self, classes):
        super().__init__()
        self.first, self.classifier = nn.Conv2d(1, 8, 3), nn.Linear(8, classes)

    def forward(self, images):
        return self.classifier(self.first(images).relu().mean(dim=(2, 3)))


class Grouped(nn.Module):
    """A channel of `first` is 4 filters, and 2 behind it: a whole group of the convolution in the middle."""

    def __init__(self, classes, groups, width):
        super().__init__()
        self.first, self.middle = nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, width, 3, padding=1, groups=groups)
        self.last, self.classifier = nn.Conv2d(width, 40, 1), nn.Linear(40, classes)

    def forward(self, images):
        return self.classifier(self.last(self.middle(self.first(images).relu()).relu()).relu().mean(dim=(2, 3)))


class Noted:
    """A split that writes down which process read it from the object store."""

    def __init__(self, split, log):
        self.split, self.log = split, log

    def __len__(self):
        return len(self.split)

    def __setstate__(self, state):
        self.__dict__.update(state)
        with Path(self.log).open("a") as file:
            file.write(f"{os.getpid()}\n")

    def batches(self, *args, **options):
        return self.split.batches(*args, **options)

    def subset(self, count, seed):
        return self.split.subset(count, seed)


class Poisoned(Network):
    """Loses its GPU in the middle of the training, once: from then on everything fails in this process."""

    lost = False

    def __init__(self, classes, grave):
        super().__init__(classes, 1, (8, 16))
        self.grave, self.steps = Path(grave), 0

    def forward(self, images):
        if self.training and torch.is_grad_enabled():
            self.steps += 1
            if self.steps > 10 and not self.grave.exists():
                self.grave.touch()
                Poisoned.lost = True
        if Poisoned.lost:
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")
        return super().forward(images)


class Booked(Network):
    """Writes down what Ray has given the process that trains."""

    def __init__(self, classes, book):
        super().__init__(classes, 1, (8, 16))
        self.book = Path(book)

    def forward(self, images):
        if torch.is_grad_enabled() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
            with self.book.open("a") as file:
                file.write(f"{json.dumps(ray.get_runtime_context().get_assigned_resources())}\n")
        return super().forward(images)


class Signed(Network):
    """Signs a book with the name of the machine, and rests, at every thirtieth step of its training: 300 images."""

    def __init__(self, classes, book, rests_s):
        super().__init__(classes, 1, (8, 16))
        self.book, self.rests_s, self.steps = Path(book), rests_s, 0

    def forward(self, images):
        if self.training and torch.is_grad_enabled():
            self.steps += 1
            if self.steps % 30 == 0:
                with self.book.open("a") as file:
                    file.write(f"{socket.gethostname()}\n")
                time.sleep(self.rests_s)
        return super().forward(images)


class Choosy(Network):
    """Looks at its values and decides, if it is to become a graph."""

    def forward(self, images):
        logits = super().forward(images)
        return -logits if torch.compiler.is_exporting() and logits.sum() > 0 else logits


class Greedy(Network):
    """Runs out of memory in training for more images than fit at a time."""

    def __init__(self, classes, most):
        super().__init__(classes, 1, (8, 16))
        self.most = most

    def forward(self, images):
        trained = self.training and torch.is_grad_enabled() and isinstance(images, torch.Tensor)  # not traced
        if trained and len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has less")
        return super().forward(images)


def network(num_classes=10, channels=1, widths=(8, 16)):
    return Network(num_classes, channels, widths)


def blocks(num_classes=10, count=4):
    return Blocks(num_classes, count)


def fragile(num_classes=10):
    return Fragile(num_classes, 1, (8, 16))


def mortal(num_classes=10, grave=""):
    return Mortal(num_classes, grave)


def bound(num_classes=10, home=0, sleeps=False):
    return Bound(num_classes, home, sleeps)


def grouped(num_classes=10, groups=16, width=32):
    return Grouped(num_classes, groups, width)


def bare(num_classes=10):
    return Bare(num_classes)


def noted(log, **options):
    data = load_data("digits", **options)
    return replace(data, train=Noted(data.train, log))


def poisoned(num_classes=10, grave=""):
    return Poisoned(num_classes, grave)


def booked(num_classes=10, book=""):
    return Booked(num_classes, book)


def signed(num_classes=10, book="", rests_s=0):
    return Signed(num_classes, book, rests_s)


def greedy(num_classes=10, most=20):
    return Greedy(num_classes, most)


def choosy(num_classes=10):
    return Choosy(num_classes, 1, (8, 16))


def experiment(folder, **sections):
    """Return an experiment on 8×8 digits whose files go to a folder."""
    data = {"name": "digits", "options": {"size": 8, "channels": 1, "train_images": 300}}
    tree = {
        "name": "tiny",
        "model": "tiny:network",
        "data": data,
        "baseline": {"epochs": 6, "learning_rate": 0.2, "batch_size": 15},
        "recipe": {"epochs": 2, "learning_rate": 0.05, "batch_size": 50},
        "tracking": {"enabled": False},
        "storage": str(folder),
    }
    alone = {"start": [], "surrogate": "none"}  # the sampler proposes, nobody else
    search = {"trials": 4, "concurrent": 2, "sampler": "random", **alone, **sections.pop("search", {})}
    return parse_experiment(tree | {"search": search} | sections)


def untrained(folder, model):
    """Save a network as it is made, and return the file."""
    path = folder / "untrained.safetensors"
    save_weights(build_model(ModelSpec.model_validate(model)), path)
    return path


def save_cut(folder, widths=None, model="tiny:network"):
    """Cut a network with random weights, save it as `apply` does, and return the folder."""
    spec, example = ModelSpec(name=model), torch.zeros(2, *IMAGE_SHAPE)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        cut = build_model(spec)
        cut(torch.randn(16, *IMAGE_SHAPE))  # norms that are not neutral
    groups = find_groups(cut, example)
    policy = Policy(model=spec, network=groups.signature, widths=widths or {"first": 5, "second": 9})
    kept = prune(cut, policy, CRITERIA.build("l1").rank(cut, groups), groups=groups, example_input=example)
    save_pruned(folder, cut, policy, kept, image_shape=IMAGE_SHAPE)
    return folder


TRUSTED = ("tiny:network", "tiny:blocks", "tiny:choosy", "tiny:grouped")
TRUST = [part for name in TRUSTED for part in ("--trust", name)]


def load_cut(folder):
    """Load what `save_cut` or `apply` saved of a network in this file."""
    return load_pruned(folder, trusted=TRUSTED)


def files(folder):
    """Return everything below a folder with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
