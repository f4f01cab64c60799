"""A cheap model of a policy's quality: refitted as trials report, it scores candidates and proposes its front."""

from search.surrogate.ladder import Ladder
from search.surrogate.observations import Observation, observations_of
from search.surrogate.prior import Prior
from search.surrogate.proposing import Prediction, Proposal, Surrogate

__all__ = ["Ladder", "Observation", "Prediction", "Prior", "Proposal", "Surrogate", "observations_of"]
