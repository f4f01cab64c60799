"""A network of three blocks, images that it can learn, and auxiliary heads on it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.data import Pixels, TensorSplit
from pruning.policy import AuxiliaryPlacement, Recipe

EXAMPLE = torch.zeros(1, 3, 8, 8)
PLAIN = Recipe(
    epochs=1,
    batch_size=8,
    learning_rate=0.1,
    momentum=0.0,
    weight_decay=0.0,
    schedule="constant",
    augment=False,
    precision="float32",
    channels_last=False,
)


class Block(nn.Module):
    """A residual block with one inner group."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Net(nn.Module):
    """Three blocks, registered in another order than they run in."""

    def __init__(self, classes: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(4, classes)
        self.late = nn.Sequential(Block(4))
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.early = nn.Sequential(Block(4), Block(4))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.late(self.early(self.bn(self.stem(x))))
        return self.head(self.drop(x.mean((2, 3))))


def make_net(seed: int = 0, **options) -> Net:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Net(**options)


def make_split(count: int = 20, seed: int = 0) -> TensorSplit:
    """Three classes, each brighter in its own channel."""
    labels = torch.arange(count) % 3
    images = torch.randint(120, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    images[torch.arange(count), labels] += 100
    return TensorSplit(images.to(torch.uint8), labels, Pixels((0.4,) * 3, (0.25,) * 3, padding=1, flip=True))


def make_images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def at(*places: int | str, **options) -> AuxiliaryPlacement:
    return AuxiliaryPlacement(kind="explicit", positions=places, **options)


def make_auxiliary(model: nn.Module, *places: int | str, classes: int = 3, seed: int = 0, **options) -> AuxiliaryLosses:
    return AuxiliaryLosses(model, at(*(places or (1, 3)), **options), classes, EXAMPLE, seed=seed)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def differ(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    return [name for name in left if not torch.equal(left[name], right[name])]


class Recording:
    """A split that keeps the batches it has given."""

    def __init__(self, split: TensorSplit) -> None:
        self.split, self.given = split, []

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, *args, **options) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.split.batches(*args, **options):
            self.given.append(batch)
            yield batch
