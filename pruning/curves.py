"""A ranking that knows what the network loses at each width of each group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from pruning.greedy import FittingRanking
from pruning.groups import ChannelGroups
from pruning.ranking import Ranking, load_ranking, register_kind, write_ranking


@dataclass(frozen=True, eq=False)
class Curve:
    """What was measured of one group: `widths`, int64 and ascending, with `loss` and `accuracy`, float64 `[widths]`."""

    widths: Tensor
    loss: Tensor
    accuracy: Tensor


class SensitivityRanking:
    """A ranking of any kind, with what was measured when each group alone was cut as it says.

    Args:
        base: says which channels stay.
        curves: for each group what was measured.
    """

    criterion = "sensitivity"

    def __init__(self, base: Ranking, curves: Mapping[str, Curve]) -> None:
        self.base, self.curves = base, dict(curves)

    @property
    def scores(self) -> dict[str, Tensor]:
        """The base's scores; empty where it has none."""
        return dict(getattr(self.base, "scores", {}))

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """Return the channels that the base keeps."""
        return self.base.keep(group, width)

    def weights(self, model: nn.Module, groups: ChannelGroups, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the weights that the base fitted; see `FittingRanking`."""
        return self.base.weights(model, groups, widths) if isinstance(self.base, FittingRanking) else {}

    def save(self, path: Path) -> None:
        """Write the curves as safetensors, and the base's own file within."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / "base"
            self.base.save(file)  # type: ignore[attr-defined]  # every kind has it
            content = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        parts = {
            "base": {"file": content},
            "width": {name: curve.widths for name, curve in self.curves.items()},
            "loss": {name: curve.loss for name, curve in self.curves.items()},
            "accuracy": {name: curve.accuracy for name, curve in self.curves.items()},
        }
        write_ranking(path, "sensitivity", self.criterion, parts, {"groups": list(self.curves)})


@register_kind("sensitivity")
def _load(
    criterion: str,  # noqa: ARG001, it has one name
    parts: Mapping[str, dict[str, Tensor]],
    extra: Mapping[str, list[str]],
) -> SensitivityRanking:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "base"
        file.write_bytes(parts["base"]["file"].numpy().tobytes())
        base = load_ranking(file)
    curves = {
        name: Curve(parts["width"][name], parts["loss"][name], parts["accuracy"][name]) for name in extra["groups"]
    }
    return SensitivityRanking(base, curves)
