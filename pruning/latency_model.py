"""Latency as a function of widths: a few measured networks, and a sum of costs that never fall as a width grows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator
from scipy.optimize import nnls
from torch import Tensor, nn

from pruning.allocation.ladder import Ladder
from pruning.cost import CostModel
from pruning.cutting import remove
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.latency import compare_latency
from pruning.policy import Data, explain
from pruning.polynomials import Polynomials, Product

Integers = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

FOLDS = 40
"""The error is found by leaving out one measurement after the other; of more than so many, one part of so many."""

TOGETHER = 8
"""So many cut copies are measured in turns."""


class Part(Data):
    """What weights of equal shape and use take together, `coefficient · Σ products`.

    Attributes:
        coefficient: µs of one unit of the products.
        products: of each weight the multiply-accumulates, or the channels along one of its axes.
    """

    coefficient: float = Field(ge=0)
    products: tuple[Product, ...]


class LatencyModel(Data):
    """Predicted latency of a network as a function of its widths; it never falls as a width grows.

    Attributes:
        widths: full widths by group name, in the order of the cost model that it was fitted with.
        parts: what is summed.
        error: median relative error at measurements that were left out of the fit.
    """

    widths: dict[str, int]
    parts: tuple[Part, ...]
    error: float = Field(ge=0)

    @model_validator(mode="after")
    def _never_falls(self) -> Self:
        for product in (product for part in self.parts for product in part.products):
            for size, lost in product.axes:
                if unknown := lost.keys() - self.widths:
                    raise ValueError(f"expected groups with a width, got {sorted(unknown)}")
                most = sum(share * self.widths[name] for name, share in lost.items())
                if product.factor < 0 or min(lost.values(), default=0) < 0 or most > size:
                    raise ValueError(f"expected products that grow with the widths, got {product}")
        return self

    @classmethod
    def fit(cls, cost: CostModel, widths: Integers, milliseconds: Vector) -> LatencyModel:
        """Fit latencies by non-negative least squares of the relative errors.

        Args:
            cost: the cost of the network before any cut.
            widths: of every group, `[measurements, groups]`, columns as `cost.groups`.
            milliseconds: what each took, `[measurements]`.

        Raises:
            OptionError: fewer than two measurements, shapes that do not fit, or a latency that is not above 0.
        """
        widths, microseconds = np.asarray(widths), 1000 * np.asarray(milliseconds, dtype=np.float64)
        _check(cost, widths, microseconds)
        full = dict(zip(cost.groups, cost.widths.tolist(), strict=True))
        kinds = _kinds(cost)
        values = _sums(full, kinds)(widths)
        parts = tuple(
            Part(coefficient=coefficient, products=kind)
            for coefficient, kind in zip(_coefficients(values, microseconds).tolist(), kinds, strict=True)
            if coefficient
        )
        return cls(widths=full, parts=parts, error=_error(values, microseconds))

    def microseconds(self, widths: Integers) -> Integers:
        """Return predicted latencies in µs, int64 `[policies]`, at widths `[policies, groups]`: a measure of budgets.

        Columns are in the order of `CostModel.groups`.
        """
        total = np.zeros(len(widths))
        # The values are whole and exact. A matrix product with the coefficients could round equal rows differently.
        for part, values in zip(self.parts, self._values(np.asarray(widths)).T, strict=True):
            total += part.coefficient * values
        return np.rint(total).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Return the model as plain JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatencyModel:
        """Return the model of `to_dict`.

        Raises:
            OptionError: anything else.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise OptionError(f"latency model: {explain(error, 'values', cls)}") from None

    @cached_property
    def _values(self) -> Polynomials:
        return _sums(self.widths, [part.products for part in self.parts])


def predict_left_out(cost: CostModel, widths: Integers, milliseconds: Vector) -> Vector:
    """Return the milliseconds of each measurement, `[measurements]`, as a fit to the others predicts them.

    Of more than `FOLDS` measurements some are left out together. Arguments and errors are those of `LatencyModel.fit`.
    """
    widths, microseconds = np.asarray(widths), 1000 * np.asarray(milliseconds, dtype=np.float64)
    _check(cost, widths, microseconds)
    full = dict(zip(cost.groups, cost.widths.tolist(), strict=True))
    return _left_out(_sums(full, _kinds(cost))(widths), microseconds) / 1000


def measure_widths(
    model: nn.Module,
    groups: ChannelGroups,
    cost: CostModel,
    example_input: Tensor,
    *,
    count: int = 40,
    seed: int = 0,
    round_to: int = 1,
    repeats: int = 30,
    warmup: int = 5,
    report: Callable[[int], object] = lambda _: None,
) -> tuple[Integers, Vector]:
    """Draw widths, cut copies of the network to them and measure them; which channels stay does not matter.

    `TOGETHER` copies at a time are in memory, and measured in turns with the network itself: what counts is the ratio
    to it, so that a slow minute of the machine does not make some of them slow.

    Args:
        model: the network before any cut; left as it is.
        groups: the groups to cut; the others keep all their channels.
        cost: the cost of the whole network.
        example_input: one batch, `[images, channels, height, width]`, on the network's device.
        count: how many networks; the first is the narrowest, the last is whole.
        seed: other widths.
        round_to: widths are multiples of so many filters, or the group's full width.
        repeats: passes of each network that count.
        warmup: passes of each before them that do not.
        report: told how many networks are done, after every few.

    Returns:
        Widths of every group, `[count, groups]`, columns as `cost.groups`, and the median milliseconds of a pass.

    Raises:
        OptionError: fewer than two networks, no repeats, or network and input on different devices.
    """
    widths = draw_widths(groups, cost, count=count, seed=seed, round_to=round_to)
    ratios, whole = list[float](), list[float]()
    for first in range(0, count, TOGETHER):
        cuts = [_cut(model, groups, cost, row) for row in widths[first : first + TOGETHER].tolist()]
        networks = {"whole": model, **{str(number): cut for number, cut in enumerate(cuts)}}
        measured = compare_latency(networks, example_input, repeats=repeats, warmup=warmup)
        reference, *others = (latency.median_ms for latency in measured.values())
        whole.append(reference)
        ratios += [milliseconds / reference for milliseconds in others]
        report(len(ratios))
    return widths, np.array(ratios) * np.median(whole)


def _cut(model: nn.Module, groups: ChannelGroups, cost: CostModel, widths: Sequence[int]) -> nn.Module:
    """Return a copy with the first channels of each group."""
    network = copy.deepcopy(model)
    remove(network, groups, {n: range(width) for n, width in zip(cost.groups, widths, strict=True) if n in groups})
    return network


def draw_widths(groups: ChannelGroups, cost: CostModel, *, count: int, seed: int, round_to: int = 1) -> Integers:
    """Return widths `[count, groups]`, columns as `cost.groups`, evenly spread from the narrowest to the full ones.

    Groups of equal full width are narrow or wide together, beside their own draws: else nothing would tell the stages
    of a network from each other.

    Raises:
        OptionError: fewer than two, or `round_to` below 1.
    """
    if count < 2:
        raise OptionError(f"latency model: expected at least 2 networks to measure, got {count}")
    rng, ladder = np.random.default_rng(seed), Ladder(groups, round_to)
    columns = [cost.groups.index(name) for name in groups]
    _, stage = np.unique(cost.widths[columns], return_inverse=True)
    widths = np.tile(cost.widths, (count, 1))
    for row, mean in enumerate(np.linspace(0, 1, count)):
        shares = _around(_around(np.full(stage.max() + 1, mean), rng)[stage], rng)
        widths[row, columns] = ladder.widths(np.rint(shares * ladder.top).astype(np.int64))
    return widths


def _around(means: Vector, rng: np.random.Generator) -> Vector:
    """Draw from [0, 1] with these means, as widely as that goes."""
    return rng.uniform(np.maximum(0, 2 * means - 1), np.minimum(1, 2 * means))


def _check(cost: CostModel, widths: Integers, microseconds: Vector) -> None:
    expected = (len(microseconds), len(cost.groups))
    if len(microseconds) < 2 or widths.shape != expected or microseconds.ndim != 1:
        shapes = f"{list(widths.shape)} and {list(microseconds.shape)}"
        rows = f"widths [n, {len(cost.groups)}] and milliseconds [n], n at least 2"
        raise OptionError(f"latency model: expected {rows}, got {shapes}")
    if not (np.isfinite(microseconds) & (microseconds > 0)).all():
        raise OptionError(f"latency model: expected milliseconds above 0, got {(microseconds / 1000).tolist()}")


def _kinds(cost: CostModel) -> list[tuple[Product, ...]]:
    """Return what may take time: a constant, and of weights of equal shape and use the MACs and the channels."""
    kinds: dict[tuple[object, ...], list[Product]] = {("constant",): [Product(1, ())]}
    for product in cost.products()[1]:
        shape = (product.factor, *(size for size, _ in product.axes))
        kinds.setdefault(("macs", *shape), []).append(product)
        for index, axis in enumerate(product.axes if len(product.axes) > 1 else ()):
            kinds.setdefault((index, *shape), []).append(Product(1, (axis,)))
    return [tuple(products) for products in kinds.values()]


def _sums(full: Mapping[str, int], kinds: Sequence[tuple[Product, ...]]) -> Polynomials:
    products = [product for kind in kinds for product in kind]
    owner = np.repeat(np.arange(len(kinds)), [len(kind) for kind in kinds])
    return Polynomials(full, products, np.eye(len(kinds))[owner])


def _coefficients(values: Vector, microseconds: Vector) -> Vector:
    scale = values.max(axis=0)
    relative, _ = nnls(values / scale / microseconds[:, None], np.ones(len(values)))
    return np.asarray(relative / scale)


def _left_out(values: Vector, microseconds: Vector) -> Vector:
    fold = np.arange(len(values)) % min(len(values), FOLDS)
    predicted = np.empty(len(values))
    for left_out in (fold == index for index in range(fold.max() + 1)):
        predicted[left_out] = values[left_out] @ _coefficients(values[~left_out], microseconds[~left_out])
    return predicted


def _error(values: Vector, microseconds: Vector) -> float:
    return float(np.median(abs(_left_out(values, microseconds) / microseconds - 1)))
