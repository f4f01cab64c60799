"""Number format and memory layout of training: what `auto` means on the device at hand."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn


def uses_bfloat16(choice: Literal["auto", "float32", "bfloat16"], model: nn.Module, device: torch.device) -> bool:
    """Return whether the forward pass runs under bfloat16 autocast.

    `auto` takes it where it is faster: on CUDA with native bfloat16; on CPUs with AVX512-BF16 or AMX (about twice as
    fast for ResNet-56) unless the network has depthwise convolutions (MobileNet-v2 is a fifth slower there).
    """
    if choice != "auto":
        return choice == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _cpu_has_bfloat16() and not any(map(_is_depthwise, model.modules()))


def uses_channels_last(choice: bool | Literal["auto"], device: torch.device, *, bfloat16: bool) -> bool:
    """Return whether weights and images are stored channels last; `auto`: on CPUs, and on CUDA with bfloat16."""
    if choice != "auto":
        return choice
    return device.type == "cpu" or (device.type == "cuda" and bfloat16)


def _cpu_has_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
