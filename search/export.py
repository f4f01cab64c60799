"""Export a pruned network, and measure what the files gain beside torch and beside the uncut network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from pruning import (
    Exported,
    ExportError,
    ImageSplit,
    Latency,
    PrunedNetwork,
    at_least,
    build_model,
    compare_latency,
    export_network,
    find_groups,
    load_data,
    load_exported,
    remove,
)
from search.config import Experiment
from search.errors import SearchError
from search.inputs import Say, silent
from search.layouts import names_trusted
from search.pruned import read_pruned
from search.units import short_count

ROUND_TO = 8
"""Widths that processors and tensor cores like are multiples of this."""

TORCH, CUT, UNCUT, ROUNDED = "torch", "cut", "uncut", "rounded"


@dataclass(frozen=True)
class Report:
    """What an export gave.

    Attributes:
        exported: the files, in the order in which they were asked for.
        images: the real images that they were compared on, in words; None where there were none.
        latencies: for each number of images what a batch takes, by `cut onnx`, `uncut torch`, ….
    """

    exported: tuple[Exported, ...]
    images: str | None
    latencies: Mapping[int, Mapping[str, Latency]]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the headers, and a row for torch and for each file."""
        headers = ["", "file", "size", "difference", "same top-1"]
        for batch in self.latencies:
            headers += [f"{images(batch)} (ms)", "uncut"]
        rows = [[TORCH, "", "", "", "", *self._milliseconds(TORCH)]]
        for it in self.exported:
            real = it.on_images
            same = "" if real is None else f"{real.same_class:,} of {real.images:,}"
            size, difference = f"{short_count(it.size_bytes)}B", f"{it.difference:.1e}" if it.difference else "0"
            rows.append([it.format, str(it.path), size, difference, same, *self._milliseconds(it.format)])
        return headers, rows

    def _milliseconds(self, runtime: str) -> list[str]:
        found = [by_name.get(f"{kind} {runtime}") for by_name in self.latencies.values() for kind in (CUT, UNCUT)]
        return ["–" if latency is None else f"{latency.median_ms:.3g}" for latency in found]

    def advice(self) -> list[str]:
        """Return a line for each number of images for which wider, rounded layers are faster in the first format."""
        form = self.exported[0].format
        return [
            f"rounded up to multiples of {ROUND_TO}, {form} would take {rounded.median_ms:.3g} ms instead of "
            f"{cut.median_ms:.3g} for {images(batch)}: search.widths.round_to: {ROUND_TO}"
            for batch, by_name in self.latencies.items()
            if (rounded := by_name.get(f"{ROUNDED} {form}")) and is_faster(rounded, cut := by_name[f"{CUT} {form}"])
        ]


def images(count: int) -> str:
    """Return `1 image`, `64 images`."""
    return f"{count:,} image{'' if count == 1 else 's'}"


def is_faster(one: Latency, other: Latency) -> bool:
    """Whether one median is lower, and each outside the other's quartiles: a busy machine alone does not do that."""
    return one.median_ms < other.lower_ms and one.upper_ms < other.median_ms


def parse_batches(text: str) -> tuple[int, ...]:
    """Return numbers of images that commas separate, each once.

    Raises:
        SearchError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise SearchError(f"--batch: expected numbers of images such as 1,64, got '{text}'")
    return tuple(dict.fromkeys(map(int, parts)))


def export_pruned(
    folder: Path,
    output: Path,
    *,
    formats: Sequence[str],
    batches: Sequence[int],
    experiment: Experiment | None = None,
    test: bool = False,
    repeats: int = 30,
    force: bool = False,
    trusted: Collection[str] = (),
    say: Say = silent,
) -> Report:
    """Export the network in a folder; compare each file with it, and time them in turns with torch and the uncut one.

    Args:
        folder: what `apply_policy` wrote.
        output: gets `network.onnx` and the like.
        formats: names of `EXPORT_FORMATS`.
        batches: the numbers of images to time.
        experiment: names real images to compare on: its validation images.
        test: take its test images.
        repeats: passes of each network.
        force: replace files that exist.
        trusted: names of networks whose code may run, beside the experiment's; see `load_pruned`.
        say: told of every step.

    Raises:
        SearchError: no pruned network, or images that are not its own.
        PruningError: see `export_network` and `load_data`.
    """
    pruned = read_pruned(folder, names_trusted(trusted, experiment))
    split, words = (None, None) if experiment is None else _images_of(experiment, pruned, test=test)
    say(f"exporting to {', '.join(formats)}, and comparing {'on noise' if words is None else f'on noise and {words}'}")
    exported = export_network(pruned.model, output, formats, image_shape=pruned.image_shape, images=split, force=force)
    with TemporaryDirectory() as scratch:
        networks = _networks(pruned, exported, Path(scratch), say)
        latencies = {}
        for batch in batches:
            say(f"timing {images(batch)} on the CPU, threads: {torch.get_num_threads()}")
            example = torch.zeros(batch, *pruned.image_shape)
            latencies[batch] = compare_latency(networks, example, repeats=repeats)
    return Report(exported, words, latencies)


def _images_of(experiment: Experiment, pruned: PrunedNetwork, *, test: bool) -> tuple[ImageSplit, str]:
    data = load_data(experiment.data.name, **experiment.data.options)
    classes = pruned.policy.model.num_classes
    if (data.image_shape, len(data.classes)) != (pruned.image_shape, classes):
        expected, got = (
            f"{shape} in {count} classes"
            for shape, count in ((pruned.image_shape, classes), (data.image_shape, len(data.classes)))
        )
        raise SearchError(f"--images: expected images {expected}, as the network takes them, got {got}")
    split, name = (data.test, "test") if test else (data.val, "validation")
    return split, f"{len(split):,} {name} images"


def _networks(pruned: PrunedNetwork, exported: Sequence[Exported], scratch: Path, say: Say) -> dict[str, nn.Module]:
    """Return what is timed, by name: the cut network, the uncut one and, if that is another one, the rounded one."""
    formats = [it.format for it in exported]
    networks: dict[str, nn.Module] = {f"{CUT} {TORCH}": pruned.model}
    networks |= {f"{CUT} {it.format}": load_exported(it.path) for it in exported}
    say("exporting the uncut network, to compare the time")
    uncut = _uncut(pruned)
    networks |= {f"{UNCUT} {TORCH}": uncut, **_exported(UNCUT, uncut, formats, pruned, scratch)}
    rounded = _rounded(pruned)
    if rounded is not None:
        networks |= _exported(ROUNDED, rounded, formats[:1], pruned, scratch)
    return networks


def _exported(
    kind: str, network: nn.Module, formats: Sequence[str], pruned: PrunedNetwork, scratch: Path
) -> dict[str, nn.Module]:
    """Return what runs a network of random weights; nothing where it cannot be exported."""
    try:
        files = export_network(network, scratch, formats, image_shape=pruned.image_shape, name=kind)
    except ExportError:
        return {}
    return {f"{kind} {it.format}": load_exported(it.path) for it in files}


def _uncut(pruned: PrunedNetwork) -> nn.Module:
    with torch.random.fork_rng([]):
        return build_model(pruned.policy.model).eval()


def _rounded(pruned: PrunedNetwork) -> nn.Module | None:
    """Return a network as wide as the cut one rounded up, with random weights; None if its widths are round."""
    network = _uncut(pruned)
    groups = find_groups(network, torch.zeros(2, *pruned.image_shape), thinned=pruned.policy.thinned)
    widths = at_least(groups.only(pruned.policy.widths), pruned.policy.widths, ROUND_TO)
    if widths == pruned.policy.widths:
        return None
    remove(network, groups, {name: range(width) for name, width in widths.items()})
    return network
