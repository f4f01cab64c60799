"""The files that a network is exported to: how its graph is taken, written, and run again."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pruning.errors import ExportError, OptionError, UnknownNameError

Run = Callable[[Tensor], Any]
"""What runs an exported file: images `[images, channels, height, width]` on the CPU to what the network returns."""

_EXAMPLES = 2  # one would be taken for a size that never changes
_DYNAMIC = ({0: Dim("batch")},)


@dataclass(frozen=True)
class ExportFormat:
    """One kind of file.

    Attributes:
        packages: what has to be installed beside torch.
        write: puts a graph into a file.
        load: returns what runs a file.
    """

    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Path], None]
    load: Callable[[Path], Run]


def export_format(name: str) -> ExportFormat:
    """Return a format by name, which is also its files' suffix.

    Raises:
        UnknownNameError: with the nearest name.
        ExportError: a package that it needs is not installed.
    """
    if name not in EXPORT_FORMATS:
        raise UnknownNameError("export format", name, EXPORT_FORMATS)
    found = EXPORT_FORMATS[name]
    for package in found.packages:
        try:
            import_module(package)
        except ImportError as error:
            raise ExportError(f"{name}: needs {package}: {error}; pip install 'prunesearch[export]'") from None
    return found


# ── the graph ────────────────────────────────────────────────────────────────────────────────────────────────────────


def capture(model: nn.Module, image_shape: tuple[int, ...]) -> ExportedProgram:
    """Return the graph of a network in eval mode on the CPU, for batches of any size.

    Raises:
        ExportError: its forward pass does what no graph can, said in plain words with the line.
    """
    images = torch.zeros(_EXAMPLES, *image_shape)
    with _quiet(), torch.no_grad(), torch.random.fork_rng([]):
        try:
            return torch.export.export(model, (images,), dynamic_shapes=_DYNAMIC)
        except Exception as error:  # torch.export raises whatever the network's code or its own raises
            raise ExportError(f"{type(model).__name__}: {_why_not_captured(str(error))}") from error


def _why_not_captured(text: str) -> str:
    place = _users_line(text)
    if "data-dependent" in text:
        return f"what it does depends on values of its input{place}; a graph cannot branch on them: use torch.where"
    if fixed := re.search(r"(?:specialized it to be|inferred to be) a constant \((\d+)\)", text):
        return (
            f"it takes batches of {fixed[1]} images only, the size it was tried with: somewhere it has the batch "
            "size as a plain number, or branches on it; use x.shape[0], -1 or flatten(1)"
        )
    if "Constraints violated" in text:
        suggested = re.search(r"Suggested fixes:\s*\n\s*(.+)", text)
        return f"it does not take every batch size{f': {suggested[1]}' if suggested else ''}"
    return f"torch.export cannot follow it{place}: {_first_line(text)}"


def _users_line(text: str) -> str:
    """Return ` at net.py:10, …` where torch quotes the line that it could not follow."""
    quoted = text.partition("The following call raised this error:")[2]
    frames = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*(\S.*)', quoted)
    if not frames:
        return ""
    file, line, code = frames[-1]
    return f" at {Path(file).name}:{line}, `{code.strip()}`"


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "no reason given")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' logs, prints and warnings, some pages long, from the user: what matters raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ── torch.export ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_pt2(program: ExportedProgram, path: Path) -> None:
    with _quiet():
        torch.export.save(program, path)


def _load_pt2(path: Path) -> Run:
    with _quiet():
        try:
            module = torch.export.load(path).module()
        except OSError:
            raise
        except Exception as error:  # a damaged archive makes the reader raise nearly anything
            raise ExportError(f"pt2: torch.export does not take {path.name}: {_first_line(str(error))}") from error
    return lambda images: module(images)  # a module among another's would be asked for its mode, and has none


# ── ONNX ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": _DYNAMIC}
    with _quiet():
        try:
            converted = torch.onnx.export(program, dynamo=True, verbose=False, **names)
            assert converted is not None
            converted.save(path, external_data=False)
        except OSError:
            raise
        except Exception as error:  # the exporter wraps what its parts raise, protobuf does not
            raise ExportError(f"onnx: {_why_not_converted(str(error))}") from error


def _why_not_converted(text: str) -> str:
    if unknown := re.search(r"No ONNX function found for .*?op='([^']+)'", text):
        return f"has no counterpart of the operator {unknown[1]}; use another one in the network, or export to pt2"
    _, _, summary = text.partition("## Exception summary")
    return f"cannot be written: {_first_line(summary or text)}"


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as torch, with which it is compared
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would slow the others down
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of a package without types, one class for each code
        raise ExportError(f"onnx: onnxruntime does not take {path.name}: {_first_line(str(error))}") from error
    (images_name,) = (entry.name for entry in session.get_inputs())

    def run(images: Tensor) -> Any:
        outputs = [torch.from_numpy(output) for output in session.run(None, {images_name: images.contiguous().numpy()})]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


EXPORT_FORMATS = {
    "onnx": ExportFormat(("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
    "pt2": ExportFormat((), _write_pt2, _load_pt2),
}
"""By name: ONNX, run by onnxruntime, and torch.export's archive, which needs torch but no code of the network."""


class ExportedNetwork(nn.Module):
    """An exported file that runs like a network, in eval mode on the CPU; neither weights nor modes are to be seen."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def forward(self, images: Tensor) -> Any:
        """Return what the network returned for images `[images, channels, height, width]`."""
        return self._run(images)


def load_exported(path: Path | str) -> ExportedNetwork:
    """Return what an exported file runs; a `.pt2` only from somebody trusted, since torch unpickles parts of it.

    Raises:
        OptionError: a file without the suffix of a format.
        ExportError: damaged, or a package that it needs is not installed.
    """
    path = Path(path)
    name = path.suffix.removeprefix(".")
    if name not in EXPORT_FORMATS:
        raise OptionError(f"exported network {path}: expected a suffix of {', '.join(EXPORT_FORMATS)}, got '{name}'")
    return ExportedNetwork(export_format(name).load(path))
