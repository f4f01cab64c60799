"""Networks as policies see them, without weights: for an experiment's images, or for the usual ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pruning import Layout, ModelError, ModelSpec, Policy, PolicyError, check_trusted, layout_of, load_data
from search.config import Experiment
from search.errors import SearchError


def layout_for(
    model: ModelSpec,
    experiment: Experiment | None = None,
    trusted: Collection[str] = (),
    thinned: Sequence[str] = (),
) -> Layout:
    """Build a network without weights; it costs what it costs for an image of the experiment, or for a usual one.

    Args:
        model: which network, as a policy names it.
        experiment: its network is trusted.
        trusted: names of other networks whose code may run; see `load_pruned`.
        thinned: see `find_groups`.

    Raises:
        SearchError: the size of the images is nowhere told.
        PruningError: images or network that are not there or do not fit each other, or a network that nobody trusts.
    """
    check_trusted(model, names_trusted(trusted, experiment))
    if experiment is not None:
        shape = load_data(experiment.data.name, **experiment.data.options).image_shape
        return layout_of(model, shape, thinned)
    try:
        return layout_of(model, thinned=thinned)
    except ModelError as error:
        raise SearchError(f"{error}; or name an experiment, whose images tell it") from None


def names_trusted(trusted: Collection[str], experiment: Experiment | None) -> tuple[str, ...]:
    """Return the names of networks whose code may run: those that were named, and the experiment's."""
    return (*trusted, *([] if experiment is None else [experiment.model.name]))


def check_model(policy: Policy, experiment: Experiment) -> None:
    """Refuse a policy for another network than the experiment's.

    Raises:
        PolicyError: with the command that moves a policy.
    """
    expected, got = experiment.model, policy.model
    if got == expected:
        return
    if got.model_copy(update={"num_classes": expected.num_classes}) == expected:
        difference = f"expected {expected.num_classes} classes as in the experiment, got {got.num_classes}"
    else:
        difference = f"expected {expected} as in the experiment, got {got}"
    raise PolicyError(f"policy.model: {difference}; `prunesearch transfer` moves a policy to another network")


def parse_shape(text: str) -> tuple[int, int, int]:
    """Return `3x128x128`, the shape of an image, as numbers: channels, height and width.

    Raises:
        SearchError: anything else.
    """
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise SearchError(f"--input-shape: expected channels, height and width as in 3x128x128, got '{text}'")
    channels, height, width = map(int, sizes)
    return channels, height, width
