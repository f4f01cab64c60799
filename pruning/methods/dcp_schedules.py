"""DCP's two schedules: when network and heads are fine-tuned, and when channels are selected."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.blocks import record
from pruning.criteria import Batches
from pruning.data.images import ImageSplit
from pruning.errors import OptionError
from pruning.finetune import Epoch, check_recipe, fine_tune
from pruning.greedy import GreedyRanking
from pruning.groups import ChannelGroups, tensor_of
from pruning.policy import Recipe
from pruning.stagewise import fine_tune_s1, train_heads

Say = Callable[[str], None]
"""Takes one line about how far the schedule is."""


@runtime_checkable
class Selector(Protocol):
    """What selects channels greedily, such as the criterion `dcp`."""

    def select(
        self,
        network: nn.Module,
        baseline: nn.Module,
        groups: ChannelGroups,
        batches: Batches,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> GreedyRanking:
        """Select channels of `groups`, in place.

        Args:
            network: afterwards its weights that read an unselected channel of these groups are zero, and those that
                read a selected one are fitted to it.
            baseline: whose outputs are to be reconstructed; as found afterwards.
            groups: the network's, or some of them.
            batches: normalised images and labels.
            auxiliary: heads whose losses join the final one.

        Returns:
            What was selected; `fitted_widths` says how many channels of each group.
        """
        ...


def joint_schedule(
    model: nn.Module,
    groups: ChannelGroups,
    auxiliary: AuxiliaryLosses,
    train: ImageSplit,
    batches: Batches,
    selector: Selector,
    *,
    recipe: Recipe,
    head_recipe: Recipe,
    device: torch.device | str = "cpu",
    seed: int = 0,
    say: Say = lambda _: None,
) -> GreedyRanking:
    """Fine-tune once with all auxiliary losses, then select the channels of all groups.

    First the heads are trained on the frozen network, then network and heads together, as `recipe.auxiliary` says; a
    copy of the result is the baseline of the selection. The network and the heads of the caller are as found.

    Paper: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, in the order of
    the authors' second release.
    Differs: the authors make one optimizer step for each loss, shallow to deep, where the gradient of loss k in what
    lies in front of it is multiplied by γ_k = max(0.01, (d_k / d_P)²), with d the depth of a head and P the last one,
    and the learning rate divided by the sum of the γ of the losses behind. Here the γ are left out: every head's loss
    weighs `placement.weight`. They train the heads together with the network from the start.

    Args:
        model: the network to prune.
        groups: those of its groups that are selected from.
        auxiliary: heads made on it.
        train: the images of both trainings.
        batches: the images of the selection.
        selector: the criterion.
        recipe: of the fine-tuning, without distillation and `compile`, its `auxiliary` not `none`.
        head_recipe: of the heads before; 0 epochs leave them as they are.
        device: where to train and select.
        seed: of order, augmentation and dropout.
        say: told about every epoch.

    Returns:
        A ranking of all groups whose base is the network at the end. Weights that read an unselected channel have the
        values in it from before the selection.

    Raises:
        OptionError: a recipe that does not fit, or no groups.
        PruningError: as for `fine_tune` and for the selector.
    """
    _check(recipe, groups)
    check_recipe(head_recipe)
    if recipe.auxiliary == "none":
        raise OptionError("recipe.auxiliary: expected joint or sequential for this schedule, got none")
    network, heads = copy.deepcopy(model).to(device), copy.deepcopy(auxiliary)
    _follow("heads", train_heads(network, heads, train, head_recipe, device=device, seed=seed), head_recipe, say)
    run = fine_tune(network, train, recipe, auxiliary=heads, device=device, seed=seed)
    _follow("network and heads", run, recipe, say)
    selection = _Selection(network)
    say(f"selection: {len(groups)} groups")
    selection.take(groups, selector, copy.deepcopy(network), batches, heads)
    return selection.ranking(groups)


def stagewise_schedule(
    model: nn.Module,
    groups: ChannelGroups,
    auxiliary: AuxiliaryLosses,
    train: ImageSplit,
    batches: Batches,
    selector: Selector,
    *,
    recipe: Recipe,
    example_input: Tensor,
    device: torch.device | str = "cpu",
    seed: int = 0,
    say: Say = lambda _: None,
) -> GreedyRanking:
    """For each head in turn, fine-tune everything with it by Algorithm S1, then select the groups in front of it.

    The last stage, behind the last head, has the final loss alone. What was unselected in one stage stays zero in the
    fine-tuning of the next ones. The baseline of every selection is a copy of the network after the first fine-tuning.
    A stage without groups is passed over. The network and the heads of the caller are as found.

    Paper: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, algorithm 1; the
    baseline as in the authors' first release.
    Differs: a stage goes on with its last epoch's weights; the authors' code takes those with the least test error.

    Args:
        model: the network to prune.
        groups: those of its groups that are selected from.
        auxiliary: heads made on it, one a stage.
        train: the images of the fine-tuning.
        batches: the images of the selection.
        selector: the criterion; it gets the head of the stage alone, none in the last.
        recipe: of each stage's fine-tuning, without distillation and `compile`; its `auxiliary` plays no part.
        example_input: `[images, channels, height, width]`.
        device: where to train and select.
        seed: of order, augmentation and dropout; each stage has its own.
        say: told about every stage and epoch.

    Returns:
        A ranking of all groups whose base is the network at the end. Weights that read an unselected channel have the
        values in it from before their group's selection; those of selected ones were trained on after it.

    Raises:
        OptionError: a recipe that does not fit, or no groups.
        PruningError: as for `fine_tune_s1` and for the selector.
    """
    _check(recipe, groups)
    network, heads = copy.deepcopy(model).to(device), copy.deepcopy(auxiliary)
    stages = stage_groups(model, groups, auxiliary, example_input)
    selection, baseline = _Selection(network), None
    for number, names in enumerate(stages):
        head = heads.only(number) if number < len(heads.names) else None
        stage = f"stage {number + 1} of {len(stages)}"
        say(f"{stage}, {'final loss' if head is None else head.names[0]}: {len(names)} groups")
        if not names:
            continue
        if head is None:
            run = fine_tune(network, train, recipe, device=device, seed=seed + number)
        else:
            run = fine_tune_s1(network, head, train, recipe, device=device, seed=seed + number)
        with selection.held_at_zero():
            _follow(stage, run, recipe, say)
        if baseline is None:
            baseline = copy.deepcopy(network)
        selection.take(groups.only(names), selector, baseline, batches, head)
    return selection.ranking(groups)


def stage_groups(
    model: nn.Module, groups: ChannelGroups, auxiliary: AuxiliaryLosses, example_input: Tensor
) -> tuple[tuple[str, ...], ...]:
    """Return the groups of each stage: a group belongs to the first head that runs behind all its readers.

    Args:
        model: runs once in eval mode; its state is as found afterwards.
        groups: its channel groups. One with a reader that does not run, such as an auxiliary head of torchvision's
            networks, is in the last stage.
        auxiliary: heads on it.
        example_input: `[images, channels, height, width]`.

    Returns:
        As many tuples of names as there are heads, and one for what is left, in the order of `groups`.
    """
    readers = {part.layer for group in groups.values() for part in group.readers}
    calls = record(model, sorted(readers.union(auxiliary.names)), example_input)
    turns: dict[str, float] = {call.name: turn for turn, call in enumerate(calls)}
    stages: list[list[str]] = [[] for _ in range(len(auxiliary.names) + 1)]
    for name, group in groups.items():
        last = max(turns.get(part.layer, math.inf) for part in group.readers)
        stages[sum(turns[head] < last for head in auxiliary.names)].append(name)
    return tuple(map(tuple, stages))


class _Unselected(NamedTuple):
    """Weights that read unselected channels."""

    tensor: str
    axis: int
    positions: Tensor
    before: Tensor


class _Selection:
    """What has been selected of a network so far."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.rankings: dict[str, GreedyRanking] = {}
        self.unselected: list[_Unselected] = []

    def take(
        self,
        groups: ChannelGroups,
        selector: Selector,
        baseline: nn.Module,
        batches: Batches,
        auxiliary: AuxiliaryLosses | None,
    ) -> None:
        """Select channels of some groups; keep what the weights that read the others have been."""
        readers = {part.tensor for group in groups.values() for part in group.readers}
        before = {name: tensor_of(self.network, name).detach().clone() for name in readers}
        ranking = selector.select(self.network, baseline, groups, batches, auxiliary)
        for name, group in groups.items():
            self.rankings[name] = ranking
            gone = sorted(set(range(group.width)).difference(ranking.keep(name, ranking.fitted_widths[name])))
            for part in group.readers:
                weight = before[part.tensor]
                places = [position for channel in gone for position in part.positions[channel]]
                positions = torch.tensor(places, dtype=torch.long, device=weight.device)
                values = weight.index_select(part.axis, positions)
                self.unselected.append(_Unselected(part.tensor, part.axis, positions, values))

    @contextmanager
    def held_at_zero(self) -> Iterator[None]:
        """Let no gradient reach the weights that read unselected channels: momentum and decay leave a zero alone."""
        hooks = []
        try:
            for part in self.unselected:
                weight = tensor_of(self.network, part.tensor)
                if weight.requires_grad:
                    hooks.append(weight.register_hook(_without(part)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def ranking(self, groups: ChannelGroups) -> GreedyRanking:
        """Return the order of all groups; the base says more than the fitted weights, which were trained on since."""
        tensors = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        base = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for part in self.unselected:
            base[part.tensor].index_copy_(part.axis, part.positions, part.before)
        made = next(iter(self.rankings.values()))
        return GreedyRanking(
            made.criterion,
            {name: self.rankings[name].orders[name] for name in groups},
            {name: self.rankings[name].losses[name] for name in groups},
            {name: self.rankings[name].fitted_widths[name] for name in groups},
            fitted={},
            base={name: tensor.cpu() for name, tensor in base.items()},
        )


def _without(part: _Unselected) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.index_fill(part.axis, part.positions, 0)


def _follow(what: str, epochs: Iterator[Epoch], recipe: Recipe, say: Say) -> None:
    for epoch in epochs:
        of_heads = f", heads {epoch.auxiliary_loss:.4f}" if epoch.auxiliary_loss else ""
        say(f"{what}, epoch {epoch.epoch} of {recipe.epochs}: loss {epoch.final_loss:.4f}{of_heads}")


def _check(recipe: Recipe, groups: ChannelGroups) -> None:
    check_recipe(recipe)
    if not groups:
        raise OptionError("groups: expected at least one channel group to select from, got none")
