"""Export a network to files that run without its code; each is compared with the network before it is there."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.data.images import ImageSplit
from pruning.errors import ExportError, OptionError
from pruning.export_formats import EXPORT_FORMATS, Run, capture, export_format, load_exported

__all__ = ["EXPORT_FORMATS", "TOLERANCE", "Agreement", "Exported", "compare_outputs", "export_network", "load_exported"]

TOLERANCE = 1000 * torch.finfo(torch.float32).eps
"""Largest difference, as a part of the largest output: 1.2e-4.

Exporters fold batch norms into weights and sum in another order, so that each layer rounds differently: some units in
the last place for each of up to some hundred layers. A graph that is wrong is off by per cents.
"""

RANDOM_BATCHES = (1, 5)
"""Sizes of the batches of noise: one, which graphs like to take for a constant, and one that no example had."""


@dataclass(frozen=True)
class Agreement:
    """How far two networks give the same.

    Attributes:
        difference: the largest of one output, as a part of the batch's largest output.
        images: how many were compared.
        same_class: how many have the same largest logit.
    """

    difference: float = 0.0
    images: int = 0
    same_class: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            max(self.difference, other.difference),
            self.images + other.images,
            self.same_class + other.same_class,
        )


@dataclass(frozen=True)
class Exported:
    """A file that does what the network does.

    Attributes:
        format: a name of `EXPORT_FORMATS`.
        path: the file.
        size_bytes: its size.
        on_noise: how far it agrees on random images, in batches of `RANDOM_BATCHES`.
        on_images: how far on real ones, where there were any.
    """

    format: str
    path: Path
    size_bytes: int
    on_noise: Agreement
    on_images: Agreement | None = None

    @property
    def difference(self) -> float:
        """The largest difference met, as a part of the largest output."""
        return max(self.on_noise.difference, self.on_images.difference if self.on_images else 0.0)


def export_network(
    model: nn.Module,
    folder: Path | str,
    formats: Sequence[str] = tuple(EXPORT_FORMATS),
    *,
    image_shape: tuple[int, ...],
    images: ImageSplit | None = None,
    name: str = "network",
    force: bool = False,
) -> tuple[Exported, ...]:
    """Write `folder/name.onnx` and `folder/name.pt2`, for batches of any size; all of them, or none.

    Each file is read again and compared with the network: on noise, and on real images where there are any. A file
    appears at once and whole, after the comparison.

    Args:
        model: exported in eval mode, from a copy on the CPU.
        folder: made if there is none.
        formats: names of `EXPORT_FORMATS`.
        image_shape: one image, (channels, height, width).
        images: real ones to compare on.
        name: of the files, without suffix.
        force: replace files that exist.

    Raises:
        UnknownNameError: a format that does not exist.
        OptionError: no format.
        ExportError: a file that exists or cannot be written, a package that is missing, a network that cannot be
            exported, or an export that is not the network.
    """
    folder = Path(folder)
    if not formats:
        raise OptionError(f"export: expected a format of {', '.join(EXPORT_FORMATS)}, got none")
    writers = {form: export_format(form) for form in dict.fromkeys(formats)}
    paths = {form: folder / f"{name}.{form}" for form in writers}
    for path in paths.values():
        if path.exists() and not force:
            raise ExportError(f"{path}: exists; name another folder, or force it")
    network = copy.deepcopy(model).cpu().eval()
    compare_outputs(network, {}, _noise(image_shape))  # refuses outputs that nothing can be compared with
    program = capture(network, image_shape)
    with _drafts(paths) as drafts:
        for form, writer in writers.items():
            writer.write(program, drafts[form])
        runs = {form: load_exported(draft) for form, draft in drafts.items()}
        on_noise = compare_outputs(network, runs, _noise(image_shape))
        on_images = {} if images is None else compare_outputs(network, runs, _real(images))
    return tuple(
        Exported(form, path, path.stat().st_size, on_noise[form], on_images.get(form)) for form, path in paths.items()
    )


@contextmanager
def _drafts(paths: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Yield other paths to write to; afterwards the files are where they belong, or after an error nowhere."""
    token = uuid.uuid4().hex[:8]
    drafts = {form: path.with_name(f".{path.stem}-{token}{path.suffix}") for form, path in paths.items()}
    folder = next(iter(paths.values())).parent
    made = [place for place in (folder, *folder.parents) if not place.exists()]  # the innermost first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield drafts
        for form, draft in drafts.items():
            draft.replace(paths[form])
    except OSError as error:
        raise ExportError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from None
    finally:
        for draft in drafts.values():
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        for place in made:
            with suppress(OSError):  # it holds files now, or was never made
                place.rmdir()


def compare_outputs(network: nn.Module, others: Mapping[str, Run], batches: Iterable[Tensor]) -> dict[str, Agreement]:
    """Compare what a network gives with what others give that should be the same.

    Outputs are the same up to `TOLERANCE`, and so are the classes of all images, up to ties of that size.

    Args:
        network: on the CPU, in eval mode.
        others: by name.
        batches: images, `[images, channels, height, width]`.

    Raises:
        ExportError: one that gives something else, or does not run on a batch; outputs that are no finite logits.
    """
    found = dict.fromkeys(others, Agreement())
    place = type(network).__name__
    for images in batches:
        expected = _outputs(place, network, images)
        if not bool(expected.isfinite().all()):
            raise ExportError(f"{place}: expected finite outputs, got others on images {tuple(images.shape)}")
        for name, run in others.items():
            found[name] += _compare(name, expected, _outputs(name, run, images))
    return found


def _outputs(name: str, run: Run, images: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            outputs = run(images)
    except Exception as error:  # each runtime has its own
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"{name}: does not run on images {tuple(images.shape)}: {reason}") from error
    if not isinstance(outputs, Tensor):
        raise ExportError(f"{name}: expected logits, got {type(outputs).__name__}")
    return outputs


def _compare(name: str, expected: Tensor, outputs: Tensor) -> Agreement:
    if outputs.shape != expected.shape:
        raise ExportError(f"{name}: expected outputs {tuple(expected.shape)}, got {tuple(outputs.shape)}")
    # A network whose outputs are all zero is no reason to divide by it.
    largest = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    difference = float((outputs - expected).abs().max() / largest)
    if not difference <= TOLERANCE:
        found = f"{difference:.2g} of the largest output on a batch of {len(expected)}, more than {TOLERANCE:.2g}"
        hint = "does it draw random numbers, or keep something from pass to pass?"
        raise ExportError(f"{name}: differs from the network by {found}; {hint}")
    logits, chosen = expected.flatten(1), outputs.flatten(1).argmax(dim=1)
    behind = logits.amax(dim=1) - logits.gather(1, chosen[:, None]).squeeze(1)
    if others := int((behind > TOLERANCE * largest).sum()):
        raise ExportError(f"{name}: names another class than the network for {others} of {len(expected)} images")
    return Agreement(difference, len(expected), int((chosen == logits.argmax(dim=1)).sum()))


def _noise(image_shape: tuple[int, ...]) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for size in RANDOM_BATCHES:
        yield torch.randn(size, *image_shape, generator=generator)


def _real(images: ImageSplit) -> Iterator[Tensor]:
    return (batch for batch, _ in images.batches(128))
