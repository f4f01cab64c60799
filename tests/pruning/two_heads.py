"""One small network with everything that makes surgery hard, and a look at all that a network holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGES = torch.zeros(2, 3, 16, 16)


class TwoHeads(nn.Module):
    """A concatenation, a sum, dropout, and an auxiliary head that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(8, 12, 1)
        self.aux, self.fc = nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.outer(F.relu(self.inner(x)))
        x = self.last(torch.cat([self.left(x), self.right(x)], dim=1))
        features = self.drop(x.mean((2, 3)))
        return (self.fc(features), self.aux(features)) if self.training else self.fc(features)


def held(network: nn.Module) -> list[Any]:
    """Return every attribute, tensor and hook of every module, by identity: equal only if nothing was touched."""
    found: list[Any] = []
    for name, module in network.named_modules():
        tables = {key: list(table.items()) for key, table in vars(module).items() if isinstance(table, dict)}
        plain = {key: id(value) for key, value in vars(module).items() if key not in tables}
        entries = {key: [(entry, id(value)) for entry, value in table] for key, table in tables.items()}
        parameters = [(parameter.requires_grad, parameter._version) for parameter in module.parameters()]
        found.append((name, plain, entries, parameters))
    return found
