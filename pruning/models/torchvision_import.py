"""Import torchvision also where its compiled part does not fit torch (a CUDA wheel beside a CPU-only torch)."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.machinery import PathFinder
from types import ModuleType

import torch

_NEEDED_BY_THE_IMPORT = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []  # a library that is collected takes its declarations along


def import_torchvision() -> ModuleType:
    """Return torchvision, with its models, transforms and data sets; none of them needs a compiled operator.

    Where the compiled part cannot load, the operators that the import asks for are declared first, without a kernel:
    calling one still fails, with torchvision's own advice.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    if not _libraries and not _compiled_part_loads():
        _declare_operators()
    return importlib.import_module("torchvision")


def _compiled_part_loads() -> bool:
    package = importlib.util.find_spec("torchvision")
    if package is None:
        raise ModuleNotFoundError("torchvision is not installed: pip install torchvision", name="torchvision")
    compiled = PathFinder.find_spec("_C", package.submodule_search_locations)
    if compiled is None or compiled.origin is None:
        return False
    try:
        torch.ops.load_library(compiled.origin)
    except OSError:
        return False
    return True


def _declare_operators() -> None:
    # A fragment, not a definition: somebody else in this process may have met the same fault and cured it.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _NEEDED_BY_THE_IMPORT:
        if not hasattr(torch.ops.torchvision, operator):
            library.define(operator + _SIGNATURE)
    _libraries.append(library)
