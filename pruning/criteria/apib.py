"""APIB: the channels that a lasso over kernel matrices needs to explain what the next layer makes of them."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pruning.criteria import StreamingCriterion, register
from pruning.errors import OptionError, RankingError
from pruning.groups import ChannelGroups
from pruning.hsic import KERNELS, Dependence, channel_grams, dependence, target_gram
from pruning.lasso_path import solve_path, twins
from pruning.path_ranking import PathRanking
from pruning.ranking import NestedRanking
from pruning.streaming import Reading

CHOICES = {
    "kernel": KERNELS,
    "normalise": ("none", "frobenius"),
    "batch_norm": ("eval", "train"),
    "pointwise_target": ("reader", "features"),
}


@register("apib")
class APIB(StreamingCriterion):
    """The support of min ½‖L − Σ b_k·K_k‖² / N² + α·‖b‖₁, at the penalty α that leaves as many channels as asked for.

    K_k is the centred Gram matrix of channel k over N images, as its reader sees it, L that of the reader's raw output.
    The whole path over α is computed, from ⟨K_k, K_l⟩ and ⟨K_k, L⟩ alone, once for each group; α is scikit-learn's.

    Paper: Guo et al., Automatic Network Pruning via Hilbert-Schmidt Independence Criterion Lasso under Information
    Bottleneck Principle, ICCV 2023. The formulas are those of the authors' code; why they are what the paper means is
    inferred: the paper's text was not to be had.
    Differs: the images pass in eval mode, in the authors' code by an oversight with the batch's statistics
    (`batch_norm: train`). Every group is explained by its reader's output; in the authors' ResNet-50 what a 1×1
    convolution reads is explained by the input of the last linear layer, also by an oversight (`pointwise_target:
    features`). A group with several readers, which the authors never cut, has the sum of their objectives, each with
    the output of its own. The lasso is solved exactly, the authors' by coordinate descent for one α after the other. A
    width that the path never reaches is filled up by |⟨K_k, L⟩|; a channel that repeats an earlier one comes after all
    others but the dead.

    Args:
        images: N, the first ones of the batches, at least 2; all in one forward pass.
        kernel: `laplace`, exp(−‖x − x'‖·√(0.5/d)) for maps of d places; or `gauss`, exp(−‖x − x'‖²/d), the authors'
            first version.
        signed: coefficients may be negative, as in the authors' code; else they may not, as in HSIC lasso (Yamada et
            al., High-Dimensional Feature Selection by Feature-Wise Kernelized Lasso, Neural Computation 2014).
        normalise: `frobenius` divides every Gram matrix by its norm; penalties of different groups then compare by
            share of explanation, with `none` absolutely, as in the authors' code.
        batch_norm: whose statistics batch norm takes: the running ones (`eval`) or the batch's (`train`).
        pointwise_target: what explains a group that a 1×1 convolution reads: that `reader`'s output or the `features`
            that the network's last linear layer reads.
    """

    name: ClassVar[str] = "apib"
    together: ClassVar[bool] = True

    def __init__(
        self,
        images: int = 128,
        kernel: str = "laplace",
        signed: bool = True,
        normalise: str = "none",
        batch_norm: str = "eval",
        pointwise_target: str = "reader",
    ) -> None:
        if images < 2:
            raise OptionError(f"criterion 'apib', images: expected at least 2, got {images}")
        chosen = {
            "kernel": kernel,
            "normalise": normalise,
            "batch_norm": batch_norm,
            "pointwise_target": pointwise_target,
        }
        for option, value in chosen.items():
            if value not in CHOICES[option]:
                expected = " or ".join(CHOICES[option])
                raise OptionError(f"criterion 'apib', {option}: expected {expected}, got '{value}'")
        self.images = images
        self.batch_statistics = batch_norm == "train"
        self.kernel, self.signed = kernel, signed
        self.normalised, self.features = normalise == "frobenius", pointwise_target == "features"

    def watcher(self, model: nn.Module, groups: ChannelGroups) -> Dependences:
        """See `StreamingCriterion.watcher`."""
        return Dependences(self, model, groups)


class Dependences(AbstractContextManager["Dependences"]):
    """Q and q of every group, summed over its readers.

    Attributes:
        of_groups: what was seen so far.
    """

    def __init__(self, criterion: APIB, model: nn.Module, groups: ChannelGroups) -> None:
        self._criterion, self._model = criterion, model
        self.of_groups = {name: Dependence.none(group.width) for name, group in groups.items()}
        self._last: tuple[weakref.ref[Tensor], Tensor] | None = None
        self._waiting: list[tuple[str, int, Tensor]] = []  # group, images, packed Gram matrices
        self._features: Tensor | None = None
        self._hooks = ExitStack()

    def __enter__(self) -> Dependences:
        if self._criterion.features:
            layers = [layer for layer in self._model.modules() if isinstance(layer, nn.Linear)]
            for layer in layers:
                self._hooks.callback(layer.register_forward_pre_hook(self._look_at_features).remove)
            self._hooks.callback(self._model.register_forward_hook(self._explain_by_features).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._hooks.close()

    def see(self, reading: Reading) -> None:
        """Look at what a layer read and put out; see `Observer.see`.

        Raises:
            RankingError: a single image.
        """
        images, channels = len(reading.labels), reading.group.width
        if images < 2:
            raise RankingError(f"criterion 'apib': needs at least 2 images, got {images}")
        name, maps, kernel = reading.group.name, reading.maps, self._criterion.kernel
        if self._criterion.features and _pointwise(reading.layer):
            self._waiting.append((name, images, channel_grams(maps, kernel)))
        else:
            grams = lambda part: channel_grams(maps[:, part], kernel)  # noqa: E731
            self._add(name, dependence(grams, channels, self._target(reading.output)))

    def _target(self, output: Tensor) -> Tensor:
        """Return the packed Gram matrix of an output, which several groups in front of a layer share."""
        if self._last is None or self._last[0]() is not output:
            self._last = weakref.ref(output), target_gram(output, self._criterion.kernel)
        return self._last[1]

    def _add(self, group: str, found: Dependence) -> None:
        self.of_groups[group] += found.normalised() if self._criterion.normalised else found

    def _look_at_features(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._waiting:
            self._features = inputs[0]  # the last linear layer that runs has the last word

    def _explain_by_features(self, *_: Any) -> None:
        if self._waiting and self._features is None:
            raise RankingError("criterion 'apib', pointwise_target: expected a linear layer with features, found none")
        for group, images, grams in self._waiting:
            assert self._features is not None
            target = target_gram(self._features[:images], self._criterion.kernel)
            self._add(group, dependence(partial(Tensor.__getitem__, grams), len(grams), target))
        self._waiting, self._features = [], None

    def ranking(self) -> PathRanking:
        """Return the paths of all groups; see `Watcher.ranking`."""
        relevance = {name: found.q.abs() for name, found in self.of_groups.items()}
        NestedRanking.from_scores(APIB.name, relevance)  # refuses what is not finite
        penalties, supports, orders = {}, {}, {}
        for name, found in self.of_groups.items():
            Q, q = found.Q.numpy(), found.q.numpy()
            path = solve_path(Q, q, signed=self._criterion.signed)
            order = np.lexsort((-np.abs(q), twins(Q), np.diagonal(Q) == 0))
            penalties[name], supports[name] = torch.from_numpy(path.penalties), torch.from_numpy(path.supports)
            orders[name] = torch.from_numpy(order)
        return PathRanking(APIB.name, penalties, supports, orders)


def _pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and all(size == 1 for size in layer.kernel_size)
