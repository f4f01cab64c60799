"""The options of DCP's search, and which of them make sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pruning.errors import OptionError

DEFAULT_RATE = 0.5


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search.

    Args:
        rate: share of each group that is gone while the groups behind it are ranked; ½ unless `epsilon` is given.
        epsilon: DCP-Adapt: instead a group is cut where |L(t−1) − L(t)| / L(0) ≤ ε first holds.
        loss_weight: λ, times the heads' own weight where there are heads; 0 leaves reconstruction only.
        reconstruction_weight: factor of L_M; 0 leaves the discrimination-aware loss only.
        learning_rate: of the one pass over the images after each pick; 0 fits nothing.
        momentum: of the same.
        weight_decay: of the same.
        images: how many images to look at, the first ones of the batches; None takes all. They are held in memory.
        complete: go on past the reference width; else the channels behind are in the order of their last score.
        cache_gib: memory for layers' inputs; what needs more is computed anew for each pass.
        mode: `exact` makes two passes over the images a pick, as published; `fast` makes one for several picks, in
            between they are made and fitted on a quadratic function, see `Surrogate`; its losses are then estimates.
            Groups that is not for, such as readers behind each other, are searched exactly.
        growth: of `fast`: by how much the number of picks grows from pass to pass.
        share: of `fast`: each pass looks at every so manieth batch.

    Raises:
        OptionError: an option out of its range, or both `rate` and `epsilon`.
    """

    name: ClassVar[str]

    rate: float | None = None
    epsilon: float | None = None
    loss_weight: float = 1.0
    reconstruction_weight: float = 1.0
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    images: int | None = None
    complete: bool = True
    cache_gib: float = 4.0
    mode: Literal["exact", "fast"] = "exact"
    growth: float = 2.0
    share: int = 1

    def __post_init__(self) -> None:
        if self.rate is not None and self.epsilon is not None:
            raise OptionError(
                f"criterion '{self.name}': expected rate or epsilon, got both, {self.rate} and {self.epsilon}"
            )
        self._check("rate", self.rate is None or 0 <= self.rate < 1, "at least 0, below 1")
        self._check("epsilon", self.epsilon is None or self.epsilon > 0, "above 0")
        self._check("loss_weight", self.loss_weight >= 0, "at least 0")
        least = "at least 0" if self.loss_weight else "above 0 where loss_weight is 0"
        self._check(
            "reconstruction_weight",
            self.reconstruction_weight >= 0 and self.loss_weight + self.reconstruction_weight > 0,
            least,
        )
        self._check("learning_rate", self.learning_rate >= 0, "at least 0")
        self._check("momentum", 0 <= self.momentum < 1, "at least 0, below 1")
        self._check("weight_decay", self.weight_decay >= 0, "at least 0")
        self._check("images", self.images is None or self.images >= 1, "at least 1")
        self._check("cache_gib", self.cache_gib >= 0, "at least 0")
        self._check("mode", self.mode in ("exact", "fast"), "'exact' or 'fast'")
        self._check("growth", self.growth >= 1, "at least 1")
        self._check("share", self.share >= 1, "at least 1")

    def _check(self, option: str, holds: bool, expected: str) -> None:
        if not holds:
            raise OptionError(f"criterion '{self.name}', {option}: expected {expected}, got {getattr(self, option)!r}")

    @property
    def reference_rate(self) -> float | None:
        """The share that is gone while the groups behind are ranked; None: `epsilon` decides."""
        return DEFAULT_RATE if self.rate is None and self.epsilon is None else self.rate
