"""Networks as policies see them, without weights: for an experiment's images, or for the usual ones."""

from __future__ import annotations

from pruning import Layout, ModelError, ModelSpec, Policy, PolicyError, layout_of, load_data
from search.config import Experiment
from search.errors import SearchError


def layout_for(model: ModelSpec, experiment: Experiment | None = None) -> Layout:
    """Build a network without weights; it costs what it costs for an image of the experiment, or for a usual one.

    Raises:
        SearchError: the size of the images is nowhere told.
        PruningError: images or network that are not there or do not fit each other.
    """
    if experiment is not None:
        return layout_of(model, load_data(experiment.data.name, **experiment.data.options).image_shape)
    try:
        return layout_of(model)
    except ModelError as error:
        raise SearchError(f"{error}; or name an experiment, whose images tell it") from None


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
