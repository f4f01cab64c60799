"""Which rules for widths an experiment asks: those it searches among, those of its starts, and what they look at."""

from __future__ import annotations

from pruning import ALLOCATIONS, CriterionSpec
from search.config import PAPERS, Experiment
from search.errors import ExperimentError
from search.mirror import pulled
from search.sections import AllocationSpec

CURVES = {"shares": (0.1, 0.25, 0.5, 0.75), "images": 256, "recalibration_images": 128}
"""Curves that starts and surrogate look at: of fewer widths and images than the defaults, to save time."""

PAPER_RULES = (
    AllocationSpec(name="uniform"),
    AllocationSpec(name="hsic_lasso"),
    AllocationSpec(name="joint_quadratic", options={"criterion": {"label_smoothing": 0.1}}),
    AllocationSpec(name="sensitivity", options={"criterion": CURVES}),
)
"""CCP's soft labels: a network that knows its images by heart has hardly a gradient without."""

ADAPTIVE = AllocationSpec(name="adaptive")


def check_start(experiment: Experiment) -> None:
    """Refuse what is to be tried first and is not there.

    Raises:
        ExperimentError: what is neither a rule nor a path.
    """
    for path in experiment.search.start_paths:
        if not pulled(path).exists():
            rules = ", ".join((PAPERS, *ALLOCATIONS.names()))
            raise ExperimentError(f"search.start: expected {rules}, a policy's file or a sweep's folder, got '{path}'")


def start_rules(experiment: Experiment) -> tuple[AllocationSpec, ...]:
    """Return the rules whose widths a sweep tries first.

    A rule that is named has the options that it has among the papers'. `papers` stands for `PAPER_RULES`, and for
    DCP-Adapt's where a criterion `dcp` is listed, which measures its losses;
    for none where no widths are searched: whoever names rules wants no other ones.
    """
    searched = "searched" in [rule.name for rule in experiment.search.allocation]
    of_papers = {rule.name: rule for rule in PAPER_RULES}
    rules: list[AllocationSpec] = []
    for item in experiment.search.start:
        if item in ALLOCATIONS.names():
            rules.append(of_papers.get(item, AllocationSpec(name=item)))
        elif item == PAPERS and searched:
            rules += PAPER_RULES
            if any(spec.name == "dcp" for spec in experiment.search.criterion):
                rules.append(ADAPTIVE)
    return tuple({str(rule): rule for rule in rules}.values())


def rules_ahead(experiment: Experiment) -> tuple[AllocationSpec, ...]:
    """Return every rule that is asked before or between the trials, and whose rankings have to be there by then."""
    rules = (*experiment.search.rules, *start_rules(experiment))
    return tuple({str(rule): rule for rule in rules}.values())


def prior_criterion(experiment: Experiment) -> CriterionSpec | None:
    """Return whose ranking tells the surrogate what a cut costs; None without surrogate."""
    if "searched" not in [rule.name for rule in experiment.search.allocation]:
        return None
    if experiment.search.surrogate.kind == "sensitivity":
        return CriterionSpec(name="sensitivity", options=CURVES)
    if experiment.search.surrogate.kind == "quadratic":
        return CriterionSpec(name="ccp", options={"label_smoothing": 0.1, "joint": True})
    return None
