"""Auxiliary heads, trained once for each placement: from the cache folder, or made now while others wait for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pruning import AuxiliaryLosses, AuxiliaryPlacement, fine_tune, load_weights, save_weights, train_heads
from search.cache import NOT_KEPT, SUFFIX, cache_of, key_of
from search.inputs import Inputs, Say, silent
from search.unwritten import going_without


def with_heads(inputs: Inputs, placement: AuxiliaryPlacement, say: Say = silent) -> tuple[nn.Module, AuxiliaryLosses]:
    """Return the baseline with trained heads, both on the CPU; after schedule `joint` the fine-tuned baseline.

    Heads are trained once for each placement; whoever asks for some that are being trained waits for them.

    Raises:
        PruningError: auxiliary losses that do not fit the network.
    """
    spec, network = inputs.experiment.auxiliary, inputs.network()
    auxiliary = AuxiliaryLosses(
        network, placement, inputs.model.num_classes, inputs.example, seed=inputs.experiment.search.seed
    )
    trained: nn.Module = auxiliary.heads
    if spec.schedule == "joint":
        trained = nn.ModuleDict({"network": network, "heads": auxiliary.heads})

    def read(path: Path) -> nn.Module:
        load_weights(trained, path)
        return trained

    def make(draft: Path) -> nn.Module:
        say(f"training auxiliary heads at {placement} on the frozen network")
        where: dict[str, Any] = {"device": inputs.device, "seed": inputs.experiment.search.seed}
        for epoch in train_heads(network, auxiliary, inputs.data.train, spec.heads, **where):
            say(f"  epoch {epoch.epoch}/{spec.heads.epochs}: loss {epoch.loss:.3f}")
        if spec.schedule == "joint":
            say("fine-tuning the network with its auxiliary losses")
            for epoch in fine_tune(network, inputs.data.train, spec.fine_tuning, auxiliary=auxiliary, **where):
                say(f"  epoch {epoch.epoch}/{spec.fine_tuning.epochs}: loss {epoch.loss:.3f}")
        trained.cpu()
        with going_without(NOT_KEPT, draft):
            save_weights(trained, draft)
        return trained

    cache = cache_of(inputs.experiment)
    cache.once(cache.path("auxiliary", heads_key(inputs, placement), SUFFIX), read, make)
    return network.cpu().eval(), auxiliary


def heads_key(inputs: Inputs, placement: AuxiliaryPlacement) -> str:
    """Return the key of trained heads; without fine-tuning their weight in the loss plays no part."""
    spec, experiment = inputs.experiment.auxiliary, inputs.experiment
    parts = [inputs.weights_hash, inputs.model.model_dump(), inputs.data.fingerprint, experiment.search.seed]
    parts += [placement.model_dump(mode="json", exclude={"weight"}), spec.heads.model_dump(mode="json")]
    if spec.schedule == "joint":
        parts += [placement.weight, spec.fine_tuning.model_dump(mode="json")]
    return key_of(parts)
