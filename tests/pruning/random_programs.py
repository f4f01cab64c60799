"""A network as plain data: a module runs it, and its channel labels say which channels are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from channel_labels import Labels
from random_layers import Operation, Step
from torch import Tensor, nn
from zeroing import randomise

IMAGE_SIZES = {1: (3, 12), 2: (3, 8, 8), 3: (3, 4, 4, 4)}


@dataclass(frozen=True)
class Again(Operation):
    """An earlier step, run once more with the same weights."""

    step: int


@dataclass(frozen=True)
class Line:
    """An operation and the values that it takes: 0 is the input, every result the next number."""

    operation: Operation
    takes: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Lines in the order in which they run, and the values that are given back."""

    lines: tuple[Line, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True)
class Block(Operation):
    """A program as a step of another, in a module of its own."""

    program: Program

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = Runner(self.program, shapes[0])

    def run(self, step: Any, *inputs: Tensor) -> Any:
        return step.layer(inputs[0])[0]

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        return follow(self.program, labels, f"{name}.layer.", given[0])


@dataclass(frozen=True)
class Plan:
    """A whole network: its body works on rows, images or volumes."""

    dims: int
    program: Program

    @property
    def image_size(self) -> tuple[int, ...]:
        return IMAGE_SIZES[self.dims]

    def images(self) -> Tensor:
        """Return two images, the same ones at each call."""
        generator = torch.Generator().manual_seed(self.dims)
        return torch.randn(2, *self.image_size, dtype=torch.double, generator=generator)

    def network(self) -> nn.Module:
        """Return the network with random numbers everywhere, the same ones at each call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return randomise(Runner(self.program, torch.Size((2, *self.image_size)))).double().eval()

    def labels(self, thinned: Sequence[str] = ()) -> Labels:
        labels = Labels(thinned)
        for given in follow(self.program, labels, "", [-1] * self.image_size[0]):
            labels.pin(given)
        return labels

    def source(self) -> str:
        """Return the plan for a reader, a step a line."""
        return "\n".join((f"image {self.image_size}", *_listing(self.program, "")))


def _listing(program: Program, indent: str) -> list[str]:
    found, count = [], 1
    for index, line in enumerate(program.lines):
        takes = ", ".join(map(str, line.takes))
        inner = isinstance(line.operation, Block)
        what = "Block" if inner else repr(line.operation)
        found.append(f"{indent}steps.{index}: {what} of {takes} makes {count}")
        found += _listing(line.operation.program, indent + "    ") if isinstance(line.operation, Block) else []
        count += line.operation.results
    return [*found, f"{indent}gives {', '.join(map(str, program.gives))}"]


class Runner(nn.Module):
    """Runs a program; its steps are modules, those that run twice the same one."""

    def __init__(self, program: Program, shape: torch.Size) -> None:
        super().__init__()
        self.program, self.steps, shapes = program, nn.ModuleDict(), [shape]
        for index, line in enumerate(program.lines):
            operation, given = line.operation, [shapes[take] for take in line.takes]
            if not isinstance(operation, Again):
                self.steps[str(index)] = Step(operation, *given)
            else:
                self.steps[str(index)] = self.steps[str(operation.step)]
            shapes += shapes_of(self.step(index), given)

    def step(self, index: int) -> Any:
        operation = self.program.lines[index].operation
        return self.steps[str(operation.step if isinstance(operation, Again) else index)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for index, line in enumerate(self.program.lines):
            step = self.step(index)
            found, results = step(*(values[take] for take in line.takes)), step.operation.results
            values += [found] if results == 1 else [found[part] for part in range(results)]
        return tuple(values[give] for give in self.program.gives)


def shapes_of(step: Step, given: Sequence[torch.Size]) -> list[torch.Size]:
    with torch.no_grad():
        found = step.eval()(*map(torch.zeros, given))
    return [part.shape for part in found] if isinstance(found, tuple) else [found.shape]


def follow(program: Program, labels: Labels, prefix: str, image: list[int]) -> list[list[int]]:
    """Return the labels of what a program gives back; note those of every step."""
    values, names = [image], list[str]()
    for index, line in enumerate(program.lines):
        operation, name = line.operation, f"{prefix}steps.{index}"
        if isinstance(operation, Again):
            operation, name = program.lines[operation.step].operation, names[operation.step]
        names.append(name)
        made = operation.labels(labels, name, *(values[take] for take in line.takes))
        labels.made.setdefault(name, []).append(made)
        values += made
    return [values[give] for give in program.gives]
