"""What a policy does to its network, group by group and all together, as data and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pruning import Cost, CostModel, CriterionSpec, GraphError, Layout, Memory, ModelSpec, Policy, Recipe
from search.units import percent

Table = tuple[list[str], list[list[str]]]
"""Headers and rows."""

LONGEST_NAME, LONGEST_CRITERION = 27, 20
"""Letters in a table's cell: with them a row fits into a terminal."""


@dataclass(frozen=True)
class GroupCut:
    """What becomes of one group.

    Attributes:
        kept: channels that stay, of `width`.
        saved: what cutting this group alone would save. Layers between two groups shrink with either, so the groups'
            savings add up to more than what the policy saves.
        criterion: says which channels stay.
    """

    name: str
    kept: int
    width: int
    saved: Cost
    criterion: CriterionSpec


@dataclass(frozen=True)
class Description:
    """A policy beside its network.

    Attributes:
        cuts: the groups that the policy names, in the order of the network.
        whole: how many other groups there are; they keep all channels.
        full: cost of one image before the cut.
        cut: cost of one image after it, exactly.
        full_memory: of one image before the cut; None where it cannot be told.
        cut_memory: of one image after it, exactly; None where it cannot be told.
    """

    policy: Policy
    cuts: tuple[GroupCut, ...]
    whole: int
    full: Cost
    cut: Cost
    full_memory: Memory | None
    cut_memory: Memory | None


def describe_policy(policy: Policy, layout: Layout) -> Description:
    """Return what a policy does to the network that it is of.

    Raises:
        PolicyError: a policy for another network.
    """
    policy.check(layout.groups)
    full = layout.cost.full
    cuts = []
    for name, group in layout.groups.only(policy.widths).items():
        alone = layout.cost.cost({name: policy.widths[name]})
        saved = Cost(full.macs - alone.macs, full.params - alone.params)
        cuts.append(GroupCut(name, policy.widths[name], group.width, saved, policy.criterion_of(name)))
    return Description(
        policy=policy,
        cuts=tuple(cuts),
        whole=len(layout.groups) - len(cuts),
        full=full,
        cut=layout.cost.cost(policy.widths),
        full_memory=memory_of(layout.cost, {}),
        cut_memory=memory_of(layout.cost, policy.widths),
    )


def memory_of(cost: CostModel, widths: Mapping[str, int]) -> Memory | None:
    """Return the memory at some widths; None of a network whose operations on a single image cannot be followed."""
    try:
        return cost.memory(widths)
    except GraphError:
        return None


def _memory_lines(before: Memory | None, after: Memory | None) -> dict[str, str]:
    if before is None or after is None:
        return {"memory": "cannot be told: the operations on a single image cannot be followed"}
    return {
        "weights": f"{written_cost(before.weight_bytes, after.weight_bytes)} bytes",
        "peak": f"{written_cost(before.peak_activation_bytes, after.peak_activation_bytes)} bytes of activations",
    }


def description_table(description: Description) -> Table:
    """Return one row a group; the criterion where they differ."""
    mixed = bool(description.policy.criteria)
    headers = ["group", "kept/of", "share", "MACs saved", "parameters saved", *(["criterion"] if mixed else [])]
    rows = [
        [
            shortened(cut.name),
            f"{cut.kept}/{cut.width}",
            percent(cut.kept / cut.width),
            percent(cut.saved.macs / description.full.macs),
            f"{cut.saved.params:,}",
            *([cropped(written_criterion(cut.criterion))] if mixed else []),
        ]
        for cut in description.cuts
    ]
    return headers, rows


def description_lines(description: Description) -> dict[str, str]:
    """Return what holds for all groups, in words by what it is."""
    policy = description.policy
    whole = f", {description.whole} others keep all channels" if description.whole else ""
    return {
        "policy": f"{policy.fingerprint} for {written_model(policy.model)}",
        "groups": f"{len(description.cuts)} named{whole}; saved is what cutting one group alone would save",
        "MACs": written_cost(description.full.macs, description.cut.macs),
        "parameters": written_cost(description.full.params, description.cut.params),
        **_memory_lines(description.full_memory, description.cut_memory),
        **({"thinned": written_thinned(policy)} if policy.thinned else {}),
        "criterion": written_criteria(policy),
        "auxiliary": written_auxiliary(policy),
        "recipe": written_recipe(policy.recipe),
        "seed": str(policy.seed),
    }


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shortened(name: str, most: int = LONGEST_NAME) -> str:
    """Return a name, or its end where it is long: `…denselayer10.conv1`."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def cropped(text: str, most: int = LONGEST_CRITERION) -> str:
    """Return a text, or its begin where it is long: `ccp(label_smoothing…`."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def written_cost(full: int, cut: int) -> str:
    """Return `40,551,040 → 20,275,520 (50.0 %)`."""
    return f"{full:,} → {cut:,} ({percent(cut / full)})"


def written_model(model: ModelSpec) -> str:
    """Return `resnet20(widths=[8, 16, 32]), 10 classes`."""
    return f"{_called(model.name, model.options)}, {model.num_classes} classes"


def written_criterion(criterion: CriterionSpec) -> str:
    """Return `ccp(label_smoothing=0.1)`."""
    return _called(criterion.name, criterion.options)


def written_criteria(policy: Policy) -> str:
    """Return `l1`, or `l1; fpgm on 3 groups`."""
    others = Counter(map(written_criterion, policy.criteria.values())).most_common()
    words = [f"{name} on {count} group{'s' if count > 1 else ''}" for name, count in others]
    return "; ".join([written_criterion(policy.criterion), *words])


def written_thinned(policy: Policy) -> str:
    """Return `layer3.0.conv2, layer3.1.conv2`, or `none`."""
    return ", ".join(policy.thinned) or "none"


def written_auxiliary(policy: Policy) -> str:
    """Return `3 evenly, dcp heads, weight 1`, or `none`."""
    placement = policy.auxiliary
    return "none" if placement is None else f"{placement}; {placement.head} heads, weight {placement.weight:g}"


def written_recipe(recipe: Recipe) -> str:
    """Return length, steps and batches, and whatever else is not the default."""
    said = {"epochs", "optimizer", "learning_rate", "schedule", "batch_size"}
    others = {name: value for name, value in recipe.model_dump(exclude_defaults=True).items() if name not in said}
    length = f"{recipe.epochs} epoch{'' if recipe.epochs == 1 else 's'} of {recipe.optimizer}"
    rate = f"learning rate {recipe.learning_rate:g} {recipe.schedule}"
    return ", ".join(
        [length, rate, f"batches of {recipe.batch_size}", *(f"{name} {value}" for name, value in others.items())]
    )


def _called(name: str, options: dict[str, object]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})" if options else name
