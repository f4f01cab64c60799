"""Sensitivity: ranks as another criterion does, and measures what the network loses at each width of each group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.criteria import CRITERIA, Batches, calibration, register
from pruning.curves import Curve, SensitivityRanking
from pruning.errors import OptionError, RankingError
from pruning.groups import ChannelGroups
from pruning.ranking import Ranking
from pruning.sensitivity import SHARES, check_shares, curves_of, measure_sensitivity

BATCH = 256
"""Images that run at a time, however they come: the numbers do not depend on it."""


@register("sensitivity")
@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The ranking of another criterion, with curves: loss and accuracy as one group alone is cut to several widths.

    Each cut is made and batch norm recalibrated; nothing is trained. Which channels stay is up to the base.

    Paper: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (section 3.2).
    Differs: batch norm is recalibrated after each cut; the paper measures the cut network as it is. Images are those
    that rank, not a validation set. The curves are made to be looked at by a rule (see `allocation/sensitivity.py`),
    where the paper's authors read them.

    Args:
        criterion: the base, by its registered name.
        options: the base's.
        shares: of a group's channels, which are measured, above 0 and at most 1; the full width is in any case.
        images: loss and accuracy are of the first so many; None takes all.
        recalibration_images: batch norm takes its statistics from the first so many; 0 keeps the network's own.
    """

    name: ClassVar[str] = "sensitivity"
    needs_data: ClassVar[bool] = True
    uses_auxiliary: ClassVar[bool] = False

    criterion: str = "l1"
    options: Mapping[str, Any] = field(default_factory=dict)
    shares: Sequence[float] = SHARES
    images: int | None = None
    recalibration_images: int = 512

    def __post_init__(self) -> None:
        place = f"criterion '{self.name}'"
        if self.criterion == self.name:
            raise OptionError(f"{place}, criterion: expected another criterion, got '{self.criterion}'")
        CRITERIA.build(self.criterion, **self.options)
        check_shares(self.shares, f"{place}, shares")
        if self.images is not None and self.images < 1:
            raise OptionError(f"{place}, images: expected at least 1, got {self.images}")
        if self.recalibration_images < 0 or self.recalibration_images == 1:
            got = self.recalibration_images
            raise OptionError(f"{place}, recalibration_images: expected 0, or at least 2, got {got}")

    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,
        auxiliary: AuxiliaryLosses | None = None,  # noqa: ARG002, the base ranks without
    ) -> SensitivityRanking:
        """Rank by the base, then measure each group; see `Criterion.rank`.

        Raises:
            RankingError: what the base raises, or a loss that is not finite.
        """
        base = CRITERIA.build(self.criterion, **self.options)
        data = self._data(batches, model, everything=base.needs_data)
        with self.told_of_base():
            ranking = base.rank(model, groups, data)
        return SensitivityRanking(ranking, self._curves(model, groups, ranking, data))

    def curves(
        self, model: nn.Module, groups: ChannelGroups, ranking: Ranking, batches: Batches | None
    ) -> dict[str, Curve]:
        """Measure some groups as `rank` does, which ranks all of them first.

        Args:
            model: the network, which is not changed.
            groups: those to measure.
            ranking: the base's, of these groups or more.
            batches: as for `rank`.

        Raises:
            RankingError: a loss that is not finite.
        """
        return self._curves(model, groups, ranking, self._data(batches, model, everything=False))

    def _data(self, batches: Batches | None, model: nn.Module, *, everything: bool) -> list[tuple[Tensor, Tensor]]:
        all_of_them = everything or self.images is None
        count = None if all_of_them else max(self.images or 0, self.recalibration_images)
        return list(calibration(batches, self.name, model, count))

    def _curves(
        self, model: nn.Module, groups: ChannelGroups, ranking: Ranking, data: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Curve]:
        images, labels = torch.cat([images for images, _ in data]), torch.cat([labels for _, labels in data])
        recalibration, test = (_batched(images, labels, size) for size in (self.recalibration_images, self.images))
        return curves_of(measure_sensitivity(model, groups, ranking, recalibration, test, self.shares))

    @contextmanager
    def told_of_base(self) -> Iterator[None]:
        """Have what the base raises name this criterion, too."""
        try:
            yield
        except RankingError as error:
            reason = str(error).removeprefix(f"criterion '{self.criterion}', ")
            raise RankingError(f"criterion '{self.name}', {reason}; its base is '{self.criterion}'") from None


def _batched(images: Tensor, labels: Tensor, count: int | None) -> list[tuple[Tensor, Tensor]]:
    if count == 0:
        return []
    return list(zip(images[:count].split(BATCH), labels[:count].split(BATCH), strict=True))
