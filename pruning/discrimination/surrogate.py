"""DCP's losses near a point, as a quadratic function of the weights that read a group: picks without images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.discrimination.problem import GroupProblem
from pruning.discrimination.reading import Objective, Reader
from pruning.discrimination.selection_data import Inputs

MOST = 100.0
"""Bound of γ: positions of a map move together, so Ḡ says too little, by less than the number of positions."""


class Surrogate:
    """L around the weights of the last `anchor`, one block a reader: slope + (ρ/n·I + γ·λ·P·Ḡ)·ΔW·Ā.

    Ā is the mean of x̂x̂ᵀ over images and positions, x̂ all that one output reads (and 1 for the bias): with it L_M is
    exact. For L_S the curvature is that of Martens & Grosse, Optimizing Neural Networks with Kronecker-factored
    Approximate Curvature, ICML 2015: Ḡ is the mean of ggᵀ, g the slope of an image's loss in an output, P the number
    of positions. γ makes up for what that leaves out: it is fitted to how the slope moved between two anchors.

    Args:
        problem: the group's losses; its readers' inputs depend on none of them, see `fits`.
        layers: the readers' layers.
        share: every so manieth batch is looked at; each anchor begins with another one.
    """

    def __init__(self, problem: GroupProblem, layers: Sequence[nn.Module], share: int) -> None:
        self._problem, self.objective = problem, problem.objective
        self._blocks = [
            _Block(reader, layer, problem.input_names[reader.layer], problem.inputs, share)
            for reader, layer in zip(problem.readers, layers, strict=True)
        ]
        self.gamma, self._share, self._round, self._loss = 1.0, share, 0, 0.0
        self._at: list[Tensor] | None = None

    def anchor(self) -> float:
        """Take slope and curvature at the problem's weights; return the loss there."""
        loss, slopes, covariances = self._problem.slopes_with_covariance(self._share, self._round % self._share)
        self._round += 1
        now = [block.read() for block in self._blocks]
        if self._at is not None:
            self._calibrate(now, slopes)
        self._at = now
        for block, slope, covariance in zip(self._blocks, slopes, covariances, strict=True):
            block.anchor(slope, covariance, self.objective)
        self._loss = loss
        return loss

    def loss(self) -> float:
        """Return L at the blocks' weights."""
        # The parabola may pass below zero, the loss does not.
        return max(0.0, self._loss + sum(block.change(self.gamma, self.objective) for block in self._blocks))

    def _calibrate(self, now: Sequence[Tensor], slopes: Sequence[Tensor]) -> None:
        top = bottom = 0.0
        for block, weights, slope in zip(self._blocks, now, slopes, strict=True):
            moved = weights - block.at
            exact = moved @ block.inner * (self.objective.reconstruction / len(moved))
            predicted = block.discrimination @ moved @ block.inner
            rest = slope - block.slope - exact
            top, bottom = top + float((rest * predicted).sum()), bottom + float(predicted.square().sum())
        if bottom > 0:
            self.gamma = min(max(top / bottom, 0.0), MOST)

    def slopes(self) -> list[Tensor]:
        """Return each reader's gradient as it would be at the blocks' weights, `[channels, outputs, entries]`."""
        return [block.by_channel(block.gradient(self.gamma, self.objective)) for block in self._blocks]

    def add(self, channel: int) -> None:
        """Give a channel the weights that it had."""
        for block in self._blocks:
            block.add(channel)

    def descend(self, channels: Sequence[int], steps: int) -> None:
        """Do what one pass would do on the average."""
        for block in self._blocks:
            block.descend(channels, steps, self.gamma, self.objective)

    def write(self) -> None:
        """Give the network the blocks' weights."""
        for block in self._blocks:
            block.write()


def fits(problem: GroupProblem, layers: Sequence[nn.Module]) -> bool:
    """Return whether every reader is a plain layer whose input depends on no other reader."""
    return all(
        reader.layer in problem.input_names and (type(layer) is nn.Linear or _is_plain(layer))
        for reader, layer in zip(problem.readers, layers, strict=True)
    )


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


class _Block:
    """One reader: its slice as a matrix `[outputs, channels · entries (+ 1 for the bias)]`."""

    def __init__(self, reader: Reader, layer: nn.Module, source: str, inputs: Inputs, share: int) -> None:
        self.reader = reader
        total, count = reader.original.new_zeros(()), 0
        for number, batch in enumerate(inputs):
            if number % share == 0:
                rows = self._rows(layer, batch.values[source])
                total, count = total + rows @ rows.T, count + rows.shape[1]
        self.inner = total / count
        self.entries = reader.original.numel() // len(reader.positions) // self._outputs
        self.weights = self.at = self.slope = self.read()
        self.discrimination = reader.original.new_zeros(())
        self.original = reader.original.flatten(1)

    @property
    def _outputs(self) -> int:
        return self.reader.weight.shape[1 - self.reader.axis]

    def _rows(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return what each output reads of the group, `[channels · entries (+ 1), images · positions]`."""
        if isinstance(layer, nn.Conv2d):
            x = x.index_select(1, self.reader.index)
            x = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
            x = x.transpose(0, 1).flatten(1)
        else:
            x = x.index_select(-1, self.reader.index).flatten(0, -2).T
        return x if self.reader.bias is None else torch.cat([x, x.new_ones(1, x.shape[1])])

    def read(self) -> Tensor:
        weight = self.reader.weight.detach().index_select(1, self.reader.index).flatten(1)
        bias = self.reader.bias
        return weight if bias is None else torch.cat([weight, bias.detach()[:, None]], dim=1)

    def write(self) -> None:
        part = self.weights[:, : self.original.shape[1]]
        with torch.no_grad():
            self.reader.weight.index_copy_(1, self.reader.index, part.reshape(self.reader.original.shape))
            if self.reader.bias is not None:
                self.reader.bias.copy_(self.weights[:, -1])

    def anchor(self, slope: Tensor, covariance: Tensor, objective: Objective) -> None:
        self.weights = self.read()
        self.at, self.slope = self.weights.clone(), slope
        self.discrimination = objective.discrimination * covariance

    def gradient(self, gamma: float, objective: Objective) -> Tensor:
        return self.slope + self._bent(gamma, objective)

    def change(self, gamma: float, objective: Objective) -> float:
        moved = self.weights - self.at
        return float((moved * (self.slope + self._bent(gamma, objective) / 2)).sum())

    def _bent(self, gamma: float, objective: Objective) -> Tensor:
        moved = self.weights - self.at
        active = moved.any(dim=0).nonzero().flatten()  # only what is picked moves
        moved = moved[:, active]
        left = moved * (objective.reconstruction / len(moved)) + gamma * (self.discrimination @ moved)
        return left @ self.inner[active]

    def by_channel(self, gradient: Tensor) -> Tensor:
        part = gradient[:, : self.original.shape[1]].double()
        return part.reshape(len(part), len(self.reader.positions), -1).transpose(0, 1)

    def columns(self, channels: Sequence[int]) -> Tensor:
        first = torch.tensor(channels)[:, None] * self.entries
        columns = (first + torch.arange(self.entries)).flatten()
        if self.reader.bias is not None:
            columns = torch.cat([columns, torch.tensor([len(self.inner) - 1])])
        return columns.to(self.inner.device)

    def add(self, channel: int) -> None:
        columns = slice(channel * self.entries, (channel + 1) * self.entries)
        self.weights = self.weights.clone()
        self.weights[:, columns] = self.original[:, columns]

    def descend(self, channels: Sequence[int], steps: int, gamma: float, objective: Objective) -> None:
        columns = self.columns(channels)
        inner = self.inner[columns][:, columns]
        left = gamma * self.discrimination + torch.eye(self._outputs).to(inner) * (
            objective.reconstruction / self._outputs
        )
        value, at = self.weights[:, columns], self.at[:, columns]
        speed = torch.zeros_like(value)
        for _ in range(steps):
            slope = self.slope[:, columns] + left @ (value - at) @ inner + objective.weight_decay * value
            speed = objective.momentum * speed + slope
            value = value - objective.learning_rate * (slope + objective.momentum * speed)
        self.weights = self.weights.index_copy(1, columns, value)
