"""Auxiliary losses: classifiers on intermediate feature maps, and what they say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruning.blocks import watched
from pruning.errors import CheckpointError, DataError, OptionError, PruningError
from pruning.losses import CrossEntropy, Loss
from pruning.placement import find_maps
from pruning.policy import AuxiliaryPlacement, Head


class AuxiliaryLosses:
    """Heads on the feature maps of a network, and their losses.

    The heads belong to this object alone: the network, its `state_dict()` included, stays as it was. Made on one
    network they attach to its copies and pruned forms too, as long as the feature maps keep their channels.

        with auxiliary.attached(model):
            logits = model(images)
            losses = auxiliary.losses(labels)

    Papers: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, eq. 4 and 5;
    Peng et al., Collaborative Channel Pruning for Deep Networks, ICML 2019, supplement D.

    Args:
        model: runs once in eval mode; its state is as found afterwards.
        placement: where, which head, what weight.
        num_classes: outputs of each head.
        example_input: `[images, channels, height, width]`.
        seed: of the heads' initial weights; torch's global random state is as found afterwards.

    Attributes:
        names: the modules whose outputs are classified, in the order in which they run.
        heads: for each of them its head, on the device of its feature map.

    Raises:
        OptionError: positions that this network does not have, twice the same, or one inside a block.
        UnknownNameError: a module that it does not have.
        PruningError: a network without blocks, or a module that does not put out one lasting feature map.
    """

    def __init__(
        self,
        model: nn.Module,
        placement: AuxiliaryPlacement,
        num_classes: int,
        example_input: Tensor,
        *,
        seed: int = 0,
    ) -> None:
        if num_classes < 1:
            raise OptionError(f"num_classes: expected at least 1, got {num_classes}")
        calls = find_maps(placement, model, example_input)
        self.placement, self.num_classes = placement, num_classes
        self.names = tuple(call.name for call in calls)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            heads = [_HEADS[placement.head](call.output.shape[1], num_classes).to(call.output.device) for call in calls]
        self.heads = nn.ModuleList(heads)
        self._widths = [int(call.output.shape[1]) for call in calls]
        self._outputs: dict[str, Tensor] | None = None

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all heads."""
        return list(self.heads.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the heads' weights and buffers, numbered in the order of `names`."""
        return self.heads.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Give the heads what `state_dict` returned.

        Raises:
            CheckpointError: it is of other heads.
        """
        now = self.heads.state_dict()
        if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in now.items()}:
            raise CheckpointError(f"auxiliary heads: expected the weights of {len(self.names)} such heads, got others")
        self.heads.load_state_dict(state)

    def only(self, *places: int | str) -> AuxiliaryLosses:
        """Return the losses of some of the heads; the heads are shared, not copied.

        Args:
            places: modules out of `names`, or their numbers in it, counted from 0.

        Raises:
            OptionError: a place without a head, the same one twice, or none at all.
        """
        chosen = [self._number(place) for place in places]
        if not chosen or len(set(chosen)) < len(chosen):
            raise OptionError(
                f"auxiliary heads: expected some of {', '.join(self.names)}, each once, got {list(places)}"
            )
        part = copy.copy(self)
        part.names = tuple(self.names[number] for number in sorted(chosen))
        part.heads = nn.ModuleList(self.heads[number] for number in sorted(chosen))
        part._widths = [self._widths[number] for number in sorted(chosen)]
        part.placement = _at(part.names, self.placement)
        part._outputs = None
        return part

    def _number(self, place: int | str) -> int:
        if place not in (*self.names, *range(len(self.names))):
            known = f"{', '.join(self.names)} or 0 to {len(self.names) - 1}"
            raise OptionError(f"auxiliary heads: expected one of {known}, got {place}")
        return self.names.index(place) if isinstance(place, str) else place

    def for_network(self, model: nn.Module, example_input: Tensor, *, seed: int = 0) -> AuxiliaryLosses:
        """Return heads at the same places of a cut network: copies where the map has kept its channels, else new ones.

        Args:
            model: a pruned form of the network that the heads were made on; runs once in eval mode.
            example_input: `[images, channels, height, width]`.
            seed: of the new heads' initial weights.

        Raises:
            PruningError: as for a new `AuxiliaryLosses`.
        """
        placement = _at(self.names, self.placement)
        made = AuxiliaryLosses(model, placement, self.num_classes, example_input, seed=seed)
        made.placement = self.placement
        for number, (width, now) in enumerate(zip(self._widths, made._widths, strict=True)):
            if width == now:
                made.heads[number].load_state_dict(self.heads[number].state_dict())
        return made

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Take the feature maps of every forward pass of `model` until the end, however it comes.

        Raises:
            PruningError: the heads are attached already.
            UnknownNameError: `model` lacks a module that has a head.
        """
        if self._outputs is not None:
            raise PruningError("auxiliary heads: expected them to be free, got attached ones")
        outputs: dict[str, Tensor] = {}
        try:
            with watched(model, self.names, outputs.__setitem__):
                self._outputs = outputs
                yield
        finally:
            self._outputs = None

    def forget(self) -> None:
        """Drop the feature maps of the last forward pass, and with them all that leads to them."""
        if self._outputs is not None:
            self._outputs.clear()

    def logits(self) -> list[Tensor]:
        """Return what each head says of the last forward pass, `[images, classes]` each.

        Raises:
            PruningError: there was none while attached, or a feature map has other channels than at first.
        """
        if not self._outputs or len(self._outputs) < len(self.names):
            raise PruningError("auxiliary heads: expected a forward pass of the whole network while attached, got none")
        maps = [self._outputs[name] for name in self.names]
        for name, features, width in zip(self.names, maps, self._widths, strict=True):
            if features.shape[1] != width:
                raise PruningError(
                    f"auxiliary head of '{name}': expected {width} channels, got {features.shape[1]}; "
                    f"make the heads after the cut"
                )
        return [head(features) for head, features in zip(self.heads, maps, strict=True)]

    def losses(self, labels: Tensor, loss: Loss | None = None) -> list[Tensor]:
        """Return the weighted loss of each head for the last forward pass, scalars.

        Args:
            labels: int64 `[images]`.
            loss: of logits and labels, the mean over the images; cross-entropy unless given.

        Raises:
            DataError: a label that the heads have no class for.
            PruningError: as for `logits`.
        """
        check_labels(labels, self.num_classes)
        loss = loss or CrossEntropy()
        return [self.placement.weight * loss(logits, labels) for logits in self.logits()]


def _at(names: tuple[str, ...], like: AuxiliaryPlacement) -> AuxiliaryPlacement:
    return AuxiliaryPlacement(kind="explicit", positions=names, head=like.head, weight=like.weight)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels without a class.

    Raises:
        DataError: a label below 0 or not below `num_classes`.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong) > 0:
        raise DataError(f"labels: expected classes 0 to {num_classes - 1}, got {int(wrong[0])}")


def _dcp_head(channels: int, classes: int) -> nn.Sequential:
    linear = nn.Linear(channels, classes)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def _ccp_head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


_HEADS: dict[Head, Callable[[int, int], nn.Sequential]] = {"dcp": _dcp_head, "ccp": _ccp_head}
