"""Rows, greedy searches and lassos as the papers write them: everything explicit, one filter and place at a time."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def inputs_of(model, images):
    """Return what every layer read, by name; a layer that is used twice has two entries."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(
                module.register_forward_hook(lambda m, x, y, name=name: found.setdefault(name, []).append(x[0]))
            )
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


def seen_rows(model, part, images):
    """Return what a filter sees at every place of every image, `[rows, channels, inputs of one channel]`."""
    layer, rows = model.get_submodule(part.layer), []
    for x in inputs_of(model, images).get(part.layer, []):
        if isinstance(layer, nn.Linear):
            rows.append(x.reshape(-1, x.shape[-1]))
            continue
        if layer.padding_mode == "zeros":
            geometry = (layer.dilation, layer.padding, layer.stride)
        else:
            assert layer.padding == "same"
            down, across = (size // 2 for size in layer.kernel_size)
            x = F.pad(x, (across, across, down, down), mode=layer.padding_mode)
            geometry = (layer.dilation, 0, layer.stride)
        seen = F.unfold(x, layer.kernel_size, *geometry).transpose(1, 2)  # [images, places, inputs·kernel]
        rows.append(seen.reshape(-1, x.shape[1], seen.shape[2] // x.shape[1]))
    whole = torch.cat(rows)
    whole = whole if whole.dim() == 3 else whole[..., None]
    return torch.stack([whole[:, list(positions)].flatten(1) for positions in part.positions], dim=1)


def filters_of(model, part):
    weight = model.get_parameter(part.tensor).detach()
    return torch.stack([weight[:, list(positions)].flatten(1) for positions in part.positions], dim=1)


def contributions(model, part, images):
    """Return what each channel adds to the output of every filter at every place, `[rows·filters, channels]`."""
    rows, filters = seen_rows(model, part, images), filters_of(model, part)
    columns = [(rows[:, channel] @ filters[:, channel].T).flatten() for channel in range(rows.shape[1])]
    return torch.stack(columns, dim=1).numpy()


def stacked(model, group, images):
    """Return the contributions to all readers below each other, each with the weight of one over its rows."""
    parts = []
    for part in group.readers:
        x = contributions(model, part, images)
        parts.append(x / np.sqrt(len(x) / len(model.get_parameter(part.tensor))))
    return np.concatenate(parts)


def removal(x):
    """ThiNet's loops; the last of equal ones goes first."""
    gone, total = [], np.zeros(len(x))
    while len(gone) < x.shape[1]:
        costs = {j: np.linalg.norm(total + x[:, j]) for j in range(x.shape[1]) if j not in gone}
        least = min(costs.values())
        gone.append(max(j for j, cost in costs.items() if cost <= least + 1e-9))
        total = total + x[:, gone[-1]]
    return gone[::-1]


def adding(x):
    """The loops of ThiNet's later code."""
    y, taken = x.sum(axis=1), []
    left = y
    while len(taken) < x.shape[1]:
        costs = {}
        for j in (j for j in range(x.shape[1]) if j not in taken):
            square = x[:, j] @ x[:, j]
            costs[j] = np.linalg.norm(left - (x[:, j] @ left) / square * x[:, j]) if square else np.inf
        taken.append(min(costs, key=costs.get))
        left = y - x[:, taken] @ np.linalg.lstsq(x[:, taken], y, rcond=None)[0]
    return taken
