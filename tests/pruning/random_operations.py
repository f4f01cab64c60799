"""Operations without weights in random networks: each as plain data, with its code and its channel labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from channel_labels import Labels
from random_layers import Operation, dims_of
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.layers import ChannelPad

# ── what moves no channels ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Activation(Operation):
    name: str = "relu"

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return getattr(torch if hasattr(torch, self.name) else F, self.name)(inputs[0])


@dataclass(frozen=True)
class Dropout(Operation):
    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = nn.Dropout(0.3)


@dataclass(frozen=True)
class Pool(Operation):
    """By two, of all, or larger again."""

    name: str = "max_pool"

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        if self.name == "interpolate":
            return F.interpolate(inputs[0], scale_factor=2)
        return getattr(F, f"{self.name}{step.dims}d")(inputs[0], 1 if self.name.startswith("adaptive") else 2)

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.dims = dims_of(shapes[0])


@dataclass(frozen=True)
class Places(Operation):
    """The image is flipped, rolled, transposed or padded."""

    name: str = "flip"

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        results = {
            "flip": lambda: torch.flip(x, [2]),
            "roll": lambda: torch.roll(x, 1, 2),
            "roll two": lambda: x.roll((1, -1), dims=(2, 3)),
            "transpose": lambda: x.transpose(2, 3),
            "zeros": lambda: F.pad(x, (1, 1, 0, 1)),
            "ones": lambda: F.pad(x, (1, 0, 0, 0), value=1.0),
            "reflect": lambda: F.pad(x, (1, 1, 1, 1), mode="reflect"),
            "crop": lambda: x[:, :, 1:],
            "thin": lambda: x[..., ::2, ::2],
            "beside": lambda: torch.cat([x, x], dim=3),
        }
        return results[self.name]()


@dataclass(frozen=True)
class Mean(Operation):
    """Over the image."""

    keepdim: bool = False

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return inputs[0].mean(tuple(range(2, step.dims + 2)), keepdim=self.keepdim)

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.dims = dims_of(shapes[0])


# ── what moves channels ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Meet(Operation):
    """Two maps, or tokens, meet channel by channel; the second may be of one place only."""

    name: str = "add"
    axis: int = 1

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        x, y = inputs
        if self.name == "iadd":
            x = x.clone()
            x += y
            return x
        results = {
            "add": lambda: x + y,
            "torch.add": lambda: torch.add(x, y, alpha=2),
            "sub": lambda: x - y,
            "mul": lambda: x * y,
            "maximum": lambda: torch.maximum(x, y),
            "where": lambda: torch.where(x > y, x, y),
            "stack": lambda: torch.stack([x, y], dim=1).sum(1),
            "einsum": lambda: torch.einsum("bc...,bc...->bc...", x, y),
            "einsum places": lambda: torch.einsum("bchw,bchw->bchw", x, y),
            "einsum vector": lambda: torch.einsum("bchw,bc->bchw", x, y),
        }
        return results[self.name]()

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        if self.name == "einsum":  # an ellipsis is not followed
            labels.refuse(given[1], 0)
            return [labels.refuse(given[0], len(given[0]))]
        labels.unite(*given)
        return [given[0]]


@dataclass(frozen=True)
class PlaceGate(Operation):
    """A map of one channel weighs the places of another."""

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return inputs[0] * torch.sigmoid(inputs[1])

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        labels.pin(given[1])
        return [given[0]]


@dataclass(frozen=True)
class Cat(Operation):
    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=1)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        return [[label for part in given for label in part]]


@dataclass(frozen=True)
class Chunk(Operation):
    """Equal parts, whose channels stay together offset by offset."""

    parts: int

    @property
    def results(self) -> int:
        return self.parts

    def run(self, step: Any, *inputs: Tensor) -> Any:
        return inputs[0].chunk(self.parts, dim=1)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        each = len(given[0]) // self.parts
        parts = [given[0][start : start + each] for start in range(0, len(given[0]), each)]
        labels.tie(zip(*parts, strict=True))
        return parts


@dataclass(frozen=True)
class Split(Operation):
    """Parts of any size, by numbers in the code or by attributes."""

    sizes: tuple[int, ...]
    attribute: bool = False

    @property
    def results(self) -> int:
        return len(self.sizes)

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.sizes = list(self.sizes)

    def run(self, step: Any, *inputs: Tensor) -> Any:
        return torch.split(inputs[0], step.sizes if self.attribute else list(self.sizes), dim=1)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        ends = [sum(self.sizes[: count + 1]) for count in range(len(self.sizes))]
        parts = [given[0][end - size : end] for end, size in zip(ends, self.sizes, strict=True)]
        for index, part in enumerate(parts):
            if self.attribute and len(part) > 1:
                labels.carry(f"{name}.sizes[{index}]", part)
            else:
                labels.pin(part)
        return parts


@dataclass(frozen=True)
class Slice(Operation):
    """A run of channels between literal bounds; those before a bound have to stay."""

    start: int
    stop: int

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return inputs[0][:, self.start : self.stop]

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        labels.pin(given[0][: self.start if self.stop >= len(given[0]) else self.stop])
        return [given[0][self.start : self.stop]]


@dataclass(frozen=True)
class SliceByAttribute(Operation):
    """Two runs of channels, up to a number of the network's and from it."""

    width: int
    results = 2

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.width = self.width

    def run(self, step: Any, *inputs: Tensor) -> Any:
        return inputs[0][:, : step.width], inputs[0][:, step.width :]

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        labels.carry(f"{name}.width", given[0][: self.width])
        return [given[0][: self.width], given[0][self.width :]]


@dataclass(frozen=True)
class Shuffle(Operation):
    """Channel shuffle: by a layer, a function, or views with sizes of the tensor."""

    groups: int
    how: str = "layer"

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = nn.ChannelShuffle(self.groups)

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        if self.how == "layer":
            return step.layer(x)
        if self.how == "function":
            return F.channel_shuffle(x, self.groups)
        images, channels, height, width = x.shape
        parts = x.view(images, self.groups, channels // self.groups, height, width)
        return parts.transpose(1, 2).reshape(images, channels, height, width)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        each = len(given[0]) // self.groups
        rows = [given[0][offset::each] for offset in range(each)]
        labels.tie(rows)
        return [[label for row in rows for label in row]]


@dataclass(frozen=True)
class PixelShuffle(Operation):
    layer: bool = True

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return step.layer(inputs[0]) if self.layer else F.pixel_shuffle(inputs[0], 2)

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = nn.PixelShuffle(2)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        rows = [given[0][start : start + 4] for start in range(0, len(given[0]), 4)]
        labels.tie(rows)
        return [[row[0] for row in rows]]


@dataclass(frozen=True)
class PixelUnshuffle(Operation):
    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return F.pixel_unshuffle(inputs[0], 2)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        return [[label for label in given[0] for _ in range(4)]]


@dataclass(frozen=True)
class Repeat(Operation):
    """Channels twice: all after all, or one by one."""

    one_by_one: bool = False

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        return x.repeat_interleave(2, dim=1) if self.one_by_one else x.repeat(1, 2, 1, 1)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        return [[label for label in given[0] for _ in range(2)] if self.one_by_one else given[0] * 2]


@dataclass(frozen=True)
class FlipChannels(Operation):
    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return inputs[0].flip(1)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        return [given[0][::-1]]


@dataclass(frozen=True)
class PadChannels(Operation):
    """Zero channels around: by the layer that the pruner knows, or by a literal padding."""

    before: int
    after: int
    literal: bool = False

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = ChannelPad(self.before, self.after)

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return F.pad(inputs[0], (0, 0, 0, 0, self.before, self.after)) if self.literal else step.layer(inputs[0])

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        if self.literal:
            return [labels.refuse(given[0], self.before + len(given[0]) + self.after)]
        zeros = labels.carriers.setdefault(f"{name}.zeros", labels.fresh(self.before + self.after))
        return [[*zeros[: self.before], *given[0], *zeros[self.before :]]]


@dataclass(frozen=True)
class Unfollowed(Operation):
    """What mixes channels without a weight, or moves them by a literal number: no rule follows it."""

    name: str = "roll"

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        results = {
            "roll": lambda: x.roll(1, dims=1),
            "cumsum": lambda: x.cumsum(1),
            "index": lambda: x[:, [1, 0]],
        }
        return results[self.name]()

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        return [labels.refuse(given[0], 2 if self.name == "index" else len(given[0]))]


@dataclass(frozen=True)
class OverChannels(Operation):
    """What makes something of all channels: of those that stay, after a cut."""

    name: str = "mean"

    def own(self, step: Any, *shapes: torch.Size) -> None:
        if self.name == "filter":
            step.layer, step.ones = nn.Conv1d(1, 1, 3, padding=1), (1,) * (len(shapes[0]) - 2)
        if self.name == "response norm":
            step.layer = nn.LocalResponseNorm(3, alpha=0.5)

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        results = {
            "softmax": lambda: x.softmax(1) * 4,
            "normalize": lambda: F.normalize(x, dim=1),
            "mean": lambda: x * x.mean(1, keepdim=True),
            "filter": lambda: x * step.layer(x.flatten(2).mean(2)[:, None]).view(x.shape[0], -1, *step.ones),
            "response norm": lambda: step.layer(x),
            "maximum": lambda: x - x.max(1, keepdim=True)[0],
        }
        return results[self.name]()

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        labels.carry(f"{name}.all", given[0])
        return [given[0]]

    def of_kept(self, step: Any, x: Tensor, keep: Tensor) -> Tensor:
        return self.run(step, x[:, keep])


@dataclass(frozen=True)
class View(Operation):
    """A shape with the number of channels in it, by a literal or by an attribute."""

    channels: int
    attribute: bool = False

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.channels = self.channels

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return x.reshape(x.shape[0], step.channels if self.attribute else self.channels, x.shape[2], -1)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        if not self.attribute:
            return [labels.refuse(given[0], self.channels)]
        labels.carry(f"{name}.channels", given[0])
        return [given[0]]


# ── tokens and vectors ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Tokens(Operation):
    axis = -1

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return inputs[0].flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Untokens(Operation):
    """Tokens become a map of this many rows."""

    rows: int

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return inputs[0].transpose(1, 2).unflatten(2, (self.rows, -1))


@dataclass(frozen=True)
class Attend(Operation):
    """Attention of several heads; channels that are multiplied with each other are not followed."""

    heads: int
    in_one_call: bool = False
    axis = -1

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in inputs)
        if self.in_one_call:
            found = F.scaled_dot_product_attention(query, key, value)
        else:
            found = (query @ key.transpose(-2, -1) * 0.5).softmax(-1) @ value
        return found.transpose(1, 2).flatten(2)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        query, key, value = given
        labels.refuse([*query, *key], 0)
        if self.in_one_call:
            return [labels.refuse(value, len(value))]
        each = len(value) // self.heads
        labels.tie(value[offset::each] for offset in range(each))
        return [value]


@dataclass(frozen=True)
class Flatten(Operation):
    places: int
    layer: bool = False

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = nn.Flatten()

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return step.layer(inputs[0]) if self.layer else inputs[0].flatten(1)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        return [[label for label in given[0] for _ in range(self.places)]]
