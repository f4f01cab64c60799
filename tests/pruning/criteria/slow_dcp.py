"""DCP as the paper prints it: whole networks, torch's optimizer, masks, nothing kept."""

# ruff: noqa: B023, the inner function lives for one turn of the loop

import copy
from fractions import Fraction

import torch
from torch import nn
from torch.nn import functional as F

from pruning.auxiliary import AuxiliaryLosses
from pruning.groups import tensor_of
from pruning.policy import AuxiliaryPlacement

IMAGE = torch.zeros(1, 3, 8, 8, dtype=torch.float64)


class Block(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.project, self.relu = nn.Conv2d(inner, width, 1), nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.project(self.depthwise(self.relu(self.bn1(self.expand(x)))))
        out += x
        return self.relu(out)


class Coupled(nn.Module):
    """A group that four layers read one behind the other, inner groups with depthwise layers, a concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block1, self.block2 = Block(4, 5), Block(4, 3)
        self.left, self.right = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 2, 3, padding=1, bias=False)
        self.last, self.fc = nn.Conv2d(5, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        x = self.block2(self.block1(torch.relu_(self.stem(x))))
        x = torch.cat([self.left(x), F.relu(self.right(x), inplace=True)], dim=1)
        return self.fc(self.last(x).relu().mean((2, 3)))


class Flat(nn.Module):
    """A linear layer that reads every position of a map."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 4, 3, stride=3), nn.Linear(4 * 4, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(self.conv(x).flatten(1)), inplace=True))


def with_heads(model, places, weight=1.0):
    heads = AuxiliaryLosses(model, AuxiliaryPlacement(kind="explicit", positions=places, weight=weight), 5, IMAGE)
    heads.heads.double()
    return heads


def slow_dcp(
    model,
    groups,
    batches,
    heads,
    rate=0.5,
    norm="frobenius",
    loss_weight=1.0,
    reconstruction_weight=1.0,
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=1e-4,
    orders=None,
    **_,
):
    """Return for each group order, loss curve, reference width and fitted weights."""
    baseline, network = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    count, found = sum(len(labels) for _, labels in batches), {}
    weight = loss_weight * (heads.placement.weight if heads else 1)
    for name, group in groups.items():
        masks = {
            part.tensor: [_mask(network, part, channel) for channel in range(group.width)] for part in group.readers
        }
        original = {tensor: tensor_of(model, tensor).detach().clone() for tensor in masks}
        weights = {tensor: tensor_of(network, tensor) for tensor in masks}
        layers = [part.layer for part in group.readers]
        biases = {f"{layer}.bias": network.get_submodule(layer).bias for layer in layers}
        biases = {key: bias for key, bias in biases.items() if bias is not None}
        with torch.no_grad():
            for tensor, of_channels in masks.items():
                weights[tensor][sum(of_channels) > 0] = 0

        def loss(images, labels):
            outputs, wanted, maps = {}, {}, {}
            hooks = [_record(network, layer, outputs) for layer in layers]
            hooks += [_record(baseline, layer, wanted) for layer in layers]
            hooks += [_record(network, place, maps) for place in (heads.names if heads else ())]
            logits = network(images)
            with torch.no_grad():
                baseline(images)
            for hook in hooks:
                hook.remove()
            for place in maps:
                readers, total = list(weights.values()), maps[place].sum()
                parts = torch.autograd.grad(total, readers, allow_unused=True, retain_graph=True)
                if all(part is not None for part in parts):
                    logits = heads.heads.eval()[heads.names.index(place)](maps[place])
                    break
            pairs = [(outputs[layer], wanted[layer]) for layer in layers]
            distance = sum((output - goal).square().sum() / (2 * goal.numel()) for output, goal in pairs)
            return reconstruction_weight * distance + weight * F.cross_entropy(logits, labels)

        picked, losses, fitted = [], [], None
        width = group.width - int(Fraction(str(rate)) * group.width)
        while True:
            network.zero_grad()
            losses.append(0.0)
            for images, labels in batches:
                part = loss(images, labels) * len(labels) / count
                part.backward()
                losses[-1] += float(part.detach())
            if len(picked) == width:
                fitted = {tensor: _columns(weights[tensor], part) for tensor, part in _parts(group).items()}
                fitted |= {key: bias.detach().clone() for key, bias in biases.items()}
            if len(picked) == group.width:
                break
            scores = [_score(weights, masks, channel, norm) for channel in range(group.width)]
            free = [channel for channel in range(group.width) if channel not in picked]
            picked.append(max(free, key=lambda channel: (scores[channel], -channel)))
            if orders:
                picked[-1] = orders[name][len(picked) - 1]
            chosen = {tensor: sum(of_channels[k] for k in picked) for tensor, of_channels in masks.items()}
            with torch.no_grad():
                for tensor, of_channels in masks.items():
                    new = of_channels[picked[-1]] > 0
                    weights[tensor][new] = original[tensor][new]
            others = {tensor: weights[tensor].detach().clone() for tensor in weights}
            moving = [*weights.values(), *biases.values()]
            optimizer = torch.optim.SGD(
                moving, learning_rate, momentum, weight_decay=weight_decay, nesterov=momentum > 0
            )
            for images, labels in batches:
                optimizer.zero_grad()
                loss(images, labels).backward()
                for tensor, value in weights.items():
                    value.grad *= chosen[tensor]
                optimizer.step()
                with torch.no_grad():  # weight decay must not reach other groups' channels
                    for tensor, value in weights.items():
                        value.copy_(torch.where(chosen[tensor] > 0, value, others[tensor]))
        with torch.no_grad():
            for tensor, part in _parts(group).items():
                index = torch.tensor(part.positions).flatten()
                weights[tensor].index_copy_(part.axis, index, fitted[tensor])
            for key, bias in biases.items():
                bias.copy_(fitted[key])
        found[name] = picked, losses, width, fitted
    return found


def _parts(group):
    return {part.tensor: part for part in group.readers}


def _mask(network, part, channel):
    mask = torch.zeros_like(tensor_of(network, part.tensor))
    return mask.index_fill_(part.axis, torch.tensor(part.positions[channel]), 1)


def _columns(weight, part):
    return weight.detach().index_select(part.axis, torch.tensor(part.positions).flatten())


def _record(model, name, into):
    # A clone: the layer behind may work in place.
    def take(module, args, output):
        into[name] = output
        return output.clone()

    return model.get_submodule(name).register_forward_hook(take)


def _score(weights, masks, channel, norm):
    slopes = [(weights[tensor].grad * of_channels[channel]) for tensor, of_channels in masks.items()]
    if norm == "code":
        return float(sum(slope.flatten(1).norm(dim=1).sum() for slope in slopes))
    return float(sum(slope.square().sum() for slope in slopes) ** 0.5)
