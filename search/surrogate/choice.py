"""Which candidates to try: those that together would dominate most beyond what is dominated already."""

from __future__ import annotations

import heapq

import moocore
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def choose(candidates: Points, front: Points, count: int) -> list[int]:
    """Choose candidates one after the other, each with the largest gain in hypervolume over the front and those before.

    A gain never grows as others are chosen, so that only candidates whose last known gain leads are asked again.

    Args:
        candidates: `[candidates, objectives]`, to be minimised; 1 is the reference, nothing beyond it counts.
        front: what is dominated already, `[points, objectives]`.
        count: how many to choose.

    Returns:
        Their indices in the order of choice, `count` at most: a candidate that gains nothing is not chosen. Of equal
        gains the first candidate leads.
    """
    chosen: list[int] = []
    reached = front.reshape(-1, candidates.shape[1])
    if len(reached):  # each candidate is measured with all that is left
        reached = reached[moocore.is_nondominated(reached, keep_weakly=False)]
    volume = _volume(reached)
    waiting = [(-(_volume(np.vstack([reached, point])) - volume), index, 0) for index, point in enumerate(candidates)]
    heapq.heapify(waiting)
    while waiting and len(chosen) < count:
        gain, index, asked = heapq.heappop(waiting)
        if -gain <= 0:
            break
        if asked < len(chosen):
            gain = volume - _volume(np.vstack([reached, candidates[index]]))
            heapq.heappush(waiting, (gain, index, len(chosen)))
            continue
        chosen.append(index)
        reached = np.vstack([reached, candidates[index]])
        volume -= gain
    return chosen


def _volume(points: Points) -> float:
    return float(moocore.hypervolume(points, ref=1.0)) if len(points) else 0.0
