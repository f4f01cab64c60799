"""How large something from outside may be. What is larger is damaged, or made to exhaust the machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pruning.errors import CheckpointError, ModelError

LARGEST_JSON = 2**24
"""Bytes of a policy, or of a list of kept channels."""

MOST_TIMES, FREE_BYTES = 16, 2**26
"""Weights may take so many times the bytes of their file, and so many more: views that repeat, packed archives."""

MOST_PARAMETERS, MOST_TENSORS = 2**30, 10**4
"""Of a network, all together."""

MOST_CLASSES, MANY_CLASSES = 2**20, 2**12
"""Of a network; many are counted among its parameters before it is built."""

MOST_IMAGE_VALUES = 2**24
"""Channels × height × width of one image."""

_HALF_IN_TEXT = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_HALF_IN_BYTES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""Where a surrogate may be, escaped or as it is."""

MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What code raises that meets other data than it was written for."""


def read_bytes(path: Path, most: int, error: type[ValueError] = CheckpointError) -> bytes:
    """Return the content of a file.

    Raises:
        ValueError: of the type `error`: it has more bytes than `most`.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise error(f"{path}: expected at most {most:,} bytes, got more")
    return content


def parse_json(text: str | bytes, **how: Any) -> Any:
    """Return what JSON says; see `json.loads`.

    Raises:
        ValueError: no JSON, nested too deep, or with half a character, which could not be written again.
    """
    try:
        found = json.loads(text, **how)
        halves = _HALF_IN_TEXT.search(text) if isinstance(text, str) else _HALF_IN_BYTES.search(text)
        if halves:  # perhaps in pairs
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("half a character") from None
    return found


def check_claims(place: str, tensors: Mapping[str, Tensor], file_bytes: int) -> None:
    """Refuse tensors that are not plain ones in memory, or claim more values than their file can have.

    Raises:
        CheckpointError: the line begins with `place`.
    """
    most = MOST_TIMES * file_bytes + FREE_BYTES
    for name, tensor in tensors.items():
        plain = type(tensor) in (Tensor, nn.Parameter) and str(tensor.layout) == "torch.strided"
        if not plain or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{place}: {name}: expected a dense tensor, got another kind")
        most -= prod(max(1, length) for length in tensor.shape) * tensor.element_size()
        if most < 0:
            shape = tuple(tensor.shape)
            raise CheckpointError(f"{place}: {name}: expected values that {file_bytes:,} bytes can hold, got {shape}")


def check_image(place: str, shape: tuple[int, ...]) -> None:
    """Refuse images that no network takes.

    Raises:
        CheckpointError: the line begins with `place`.
    """
    if prod(shape) > MOST_IMAGE_VALUES:
        raise CheckpointError(f"{place}: expected images of at most {MOST_IMAGE_VALUES:,} values, got {shape}")


@contextmanager
def counted_parameters(place: str) -> Iterator[None]:
    """Count the parameters of networks that are built in this block.

    Raises:
        ModelError: there are more than `MOST_PARAMETERS`, or in more than `MOST_TENSORS`.
    """
    values = tensors = 0

    def count(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        nonlocal values, tensors
        if parameter is not None:
            values, tensors = values + parameter.numel(), tensors + 1
        if values > MOST_PARAMETERS or tensors > MOST_TENSORS:
            raise ModelError(f"{place}: expected at most {MOST_PARAMETERS:,} parameters in {MOST_TENSORS:,} tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
