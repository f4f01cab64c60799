"""The learning rate of every step, a pure function of the recipe."""

from __future__ import annotations

import math

from pruning.policy import Recipe


def learning_rate_at(step: int, steps_per_epoch: int, recipe: Recipe) -> float:
    """Return the learning rate of one optimizer step.

    The first `warmup_epochs` climb in equal steps to the recipe's rate; `cosine` falls to zero over what is left,
    `steps` decays at fractions of all epochs.

    Args:
        step: counted from 0 over the whole run.
        steps_per_epoch: batches of an epoch.
        recipe: names the schedule.
    """
    total, warmup = recipe.epochs * steps_per_epoch, recipe.warmup_epochs * steps_per_epoch
    climbed = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    factor = 1.0
    if recipe.schedule == "cosine":
        progress = max(0.0, step - warmup) / max(total - warmup, 1.0)
        factor = (1 + math.cos(math.pi * progress)) / 2
    elif recipe.schedule == "steps":
        # A quotient of integers rounds to the same float as the decimal fraction it equals; `0.55 * 700` does not.
        factor = recipe.decay ** sum(step / total >= milestone for milestone in recipe.milestones)
    return recipe.learning_rate * climbed * factor
