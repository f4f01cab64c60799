"""Read anyone's weights safely; save and load a pruned network as a policy, kept channels and weights."""

from __future__ import annotations

import hashlib
import pickle
import re
import shutil
import uuid
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pruning.cutting import remove
from pruning.errors import CheckpointError, SurgeryError
from pruning.finding import find_groups
from pruning.groups import ChannelGroups
from pruning.limits import FREE_BYTES, LARGEST_JSON, MOST_TIMES, check_claims, check_image, read_bytes
from pruning.models import build_model, check_trusted, input_shape
from pruning.policy import Data, Policy, explain, load_policy
from pruning.surgery import Kept

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "model_ema", "ema")
"""Keys under which training scripts keep the weights, most usual first."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put in front of every name."""

_SHOWN = 3
_DEEPEST = 8
"""Containers within containers, and prefixes before prefixes."""


# ── anyone's weights ─────────────────────────────────────────────────────────────────────────────────────────────────


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a file of `torch.save`, on the CPU; no code in it is run.

    Weights that lie deeper (`CONTAINERS`) are found, `PREFIXES` that all names have are taken off, whatever is not a
    tensor is left out.

    Raises:
        CheckpointError: missing, damaged, without tensors, with pickled objects that are not plain data, or with more
            than the file can hold.
    """
    path = Path(path)
    content = _read(path)
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"checkpoint {path}: expected a state_dict, got one without tensors")
    check_claims(f"checkpoint {path}", tensors, path.stat().st_size)
    return _without_prefix(tensors)


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Load a file of weights into `model`; all of it, or nothing.

    Only batch norm's `num_batches_tracked` may be missing.

    Raises:
        CheckpointError: unreadable, or the names or shapes are not the network's; it names the first few.
    """
    set_weights(model, read_state_dict(path), f"checkpoint {path}")


def save_weights(model: nn.Module, path: Path | str) -> None:
    """Write a network's parameters and buffers as safetensors; the file appears at once and whole.

    Raises:
        CheckpointError: it cannot be written.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(_portable(model), draft, metadata={"format": "pt"})
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"weights {path}: cannot be written: {error}") from None
    finally:
        draft.unlink(missing_ok=True)


def _portable(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights as safetensors takes them: dense, each with memory of its own, tied ones too."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of names, types, shapes and values; order, device and memory layout do not count."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> Mapping[Any, Any]:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: {error.strerror}") from None
    if head[8:] == b"{":  # the header of safetensors: eight bytes of length, then JSON
        return _read_safetensors(path)
    if not head.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle of protocol 2 and later
        raise CheckpointError(f"checkpoint {path}: damaged, or neither safetensors nor of torch.save")
    content = _read_torch(path)
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return content
        content = inner
    raise CheckpointError(f"checkpoint {path}: expected a state_dict, got {type(content).__name__}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # of shapes without values also what torch raises
        raise CheckpointError(f"checkpoint {path}: damaged safetensors: {_first_line(str(error))}") from None


def _read_torch(path: Path) -> object:
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader raise nearly anything
        text = str(error)
        if "TorchScript" in text or (isinstance(error, pickle.UnpicklingError) and "nsupported" in text):
            found = re.search(r"GLOBAL (\S+)", text)
            what = f" ({found[1]})" if found else ""
            raise CheckpointError(
                f"checkpoint {path}: holds pickled code{what}, refused; save a state_dict alone, or safetensors"
            ) from None
        raise CheckpointError(f"checkpoint {path}: damaged file of torch.save: {_first_line(text)}") from None


def _check_archive(path: Path) -> None:
    """Refuse an archive that gets much larger when it is unpacked."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # a damaged archive makes the reader raise nearly anything
        raise CheckpointError(f"checkpoint {path}: damaged file of torch.save: {_first_line(str(error))}") from None
    if unpacked > (most := MOST_TIMES * path.stat().st_size + FREE_BYTES):
        raise CheckpointError(f"checkpoint {path}: expected at most {most:,} bytes when unpacked, got {unpacked:,}")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0] or "it ends too early"


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in range(_DEEPEST):
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def set_weights(model: nn.Module, weights: Mapping[str, Tensor], place: str = "weights") -> None:
    """Put weights by name into a network; all of them, or none. Only `num_batches_tracked` may be missing.

    Raises:
        CheckpointError: they do not fit; the line begins with `place`.
    """
    own = model.state_dict()  # with the versions of its modules, which a plain dictionary lacks
    names = dict(zip(_without_prefix(own), own, strict=True))  # the network may be wrapped, too
    expected = {short: own[full] for short, full in names.items()}
    faults = _faults(expected, weights)
    if faults:
        raise CheckpointError(f"{place}: does not fit {type(model).__name__}: {faults}")
    own.update({names[short]: tensor for short, tensor in weights.items()})
    model.load_state_dict(own)


def _faults(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Return in words what does not fit, or nothing."""
    wrong = {n: (tuple(t.shape), tuple(weights[n].shape)) for n, t in expected.items() if n in weights}
    wrong = {name: shapes for name, shapes in wrong.items() if shapes[0] != shapes[1]}
    missing = [n for n in expected if n not in weights and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in expected]
    outputs = {(net[0], file[0]) if net and net[1:] == file[1:] else None for net, file in wrong.values()}
    counts = outputs.pop() if len(outputs) == 1 and _last_layer(expected) in wrong else None
    if counts and not missing and not unexpected:
        return f"the last layer has {counts[1]} classes, the network {counts[0]}"
    shapes = [f"{name}: expected {network}, got {file}" for name, (network, file) in wrong.items()]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return "; ".join(f"{len(names)} {kind} ({_first_few(names)})" for kind, names in parts.items() if names)


def _last_layer(expected: Mapping[str, Tensor]) -> str:
    return f"{list(expected)[-1].rpartition('.')[0]}.weight"


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


# ── a pruned network ─────────────────────────────────────────────────────────────────────────────────────────────────


PRUNED_FILES = ("policy.json", "kept.json", "weights.safetensors")
"""What the folder of a pruned network holds."""


class PrunedNetwork(NamedTuple):
    """A pruned network, how it came about, and the size of an image, (channels, height, width)."""

    model: nn.Module
    policy: Policy
    kept: Kept
    image_shape: tuple[int, ...]


class _Cut(Data):
    """The content of `kept.json`."""

    format: Literal[1] = 1
    input_shape: tuple[Annotated[int, Field(strict=True, ge=1)], ...] = Field(min_length=1)
    kept: dict[str, tuple[Annotated[int, Field(strict=True, ge=0)], ...]]

    @field_validator("kept")
    @classmethod
    def _ascending(cls, kept: Kept) -> Kept:
        for group, indices in kept.items():
            if list(indices) != sorted(set(indices)):
                raise ValueError(f"{group}: expected ascending indices, each once, got {list(indices)}")
        return kept


def save_pruned(
    folder: Path | str,
    model: nn.Module,
    policy: Policy,
    kept: Mapping[str, Sequence[int]],
    *,
    image_shape: tuple[int, ...] | None = None,
) -> None:
    """Write `policy.json`, `kept.json` and `weights.safetensors` into a new folder; it appears at once and whole.

    Args:
        folder: must not exist, or be empty.
        model: the network after the cut.
        policy: what it was cut by.
        kept: what `prune` returned.
        image_shape: one image, (channels, height, width); the usual one of the network unless given.

    Raises:
        CheckpointError: a folder that holds something, one that cannot be written, or channels that do not fit the
            policy.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"pruned network {folder}: expected a new or empty folder, got one that holds something")
    shape = input_shape(policy.model) if image_shape is None else image_shape
    try:
        cut = _Cut(input_shape=shape, kept={name: tuple(indices) for name, indices in kept.items()})
    except ValidationError as error:
        raise CheckpointError(explain(error, "kept", _Cut)) from None
    for name, indices in cut.kept.items():
        if policy.widths.get(name) != len(indices):
            raise CheckpointError(
                f"kept.{name}: expected {policy.widths.get(name, 'all')} channels, got {len(indices)}"
            )
    # A sibling, so that the rename stays on one file system.
    draft = folder.resolve().parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    try:
        draft.mkdir(parents=True)
        (draft / "policy.json").write_text(policy.to_json(), encoding="utf-8")
        (draft / "kept.json").write_text(cut.model_dump_json() + "\n", encoding="utf-8")
        save_file(_portable(model), draft / "weights.safetensors", metadata={"format": "pt"})
        draft.rename(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"pruned network {folder}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_pruned(folder: Path | str, *, trusted: Collection[str] = ()) -> PrunedNetwork:
    """Build the policy's network, cut it as it was cut, and load its weights; in eval mode, on the CPU.

    Args:
        folder: what `save_pruned` wrote, here or elsewhere.
        trusted: names of networks, `package.module:function`, whose code may run if the policy is of one.

    Raises:
        PruningError: a part that is missing or damaged, parts that do not belong together, a network whose code nobody
            trusts, or one that is too large.
    """
    folder = Path(folder)
    policy, cut = load_policy(folder / "policy.json"), _read_cut(folder / "kept.json")
    check_trusted(policy.model, trusted)
    with torch.random.fork_rng([]):
        model = build_model(policy.model)
    if cut.kept or policy.widths:
        groups = find_groups(model, torch.zeros(2, *cut.input_shape), thinned=policy.thinned)
        policy.check(groups)
        _check_widths(cut, policy, groups, folder)
        try:
            remove(model, groups, cut.kept)
        except SurgeryError as error:
            raise CheckpointError(f"pruned network {folder}: {error}") from None
    set_weights(model, read_state_dict(folder / "weights.safetensors"), f"pruned network {folder}")
    return PrunedNetwork(model.eval(), policy, dict(cut.kept), cut.input_shape)


def _read_cut(path: Path) -> _Cut:
    try:
        cut = _Cut.model_validate_json(read_bytes(path, LARGEST_JSON))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: {explain(error, 'kept channels', _Cut)}") from None
    check_image(f"{path}: input_shape", cut.input_shape)
    return cut


def _check_widths(cut: _Cut, policy: Policy, groups: ChannelGroups, folder: Path) -> None:
    expected = groups.widths | policy.widths
    found = groups.widths | {name: len(indices) for name, indices in cut.kept.items()}
    for name, width in found.items():
        if width != expected.get(name):
            place = f"pruned network {folder}, kept.{name}"
            raise CheckpointError(f"{place}: expected {expected.get(name, 'no such group, 0')} channels, got {width}")
