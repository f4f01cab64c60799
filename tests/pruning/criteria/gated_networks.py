"""Networks written out by hand, with a gate on every channel of every group where a layer reads it."""

import torch
import torch.nn.functional as F
from small_networks import Residual, chain
from torch import nn


class Separable(nn.Module):
    """An inverted residual: the depthwise convolution carries the channels of the expansion."""

    def __init__(self):
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.depthwise, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.project, self.fc = nn.Conv2d(6, 4, 1), nn.Linear(4, 5)
        for layer in (self.expand, self.depthwise):  # else the norm's mean decides whether a channel is on
            nn.init.normal_(layer.weight, std=2)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.project(torch.relu(self.norm(self.depthwise(torch.relu(self.expand(x))))))
        return self.fc(x.mean((2, 3)))


def _chain(model, x, gates):
    """Return the features in front of the last layer, `[images, features]`."""
    x = model[3](torch.relu(model[1](model[0](x)))) * gates["0"][:, None, None]
    return model[5](model[4](x)).flatten(1) * gates["4"]


def _residual(model, x, gates):
    stem = gates["stem"][:, None, None]
    x = torch.relu(model.norm(model.stem(x)))
    inner = torch.relu(model.norm1(model.conv1(x * stem))) * gates["conv1"][:, None, None]
    x = torch.relu(x + model.conv2(inner)) * stem
    return F.avg_pool2d(x, 2).flatten(1)


def _separable(model, x, gates):
    x = torch.relu(model.stem(x))
    inner = torch.relu(model.expand(x * gates["stem"][:, None, None]))
    inner = torch.relu(model.norm(model.depthwise(inner))) * gates["expand"][:, None, None]
    return (x + model.project(inner)).mean((2, 3)) * gates["stem"]


GATED = {chain: _chain, Residual: _residual, Separable: _separable}
