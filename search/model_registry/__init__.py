"""Pruned networks in MLflow's model registry: versions and aliases, with everything that makes them again.

    register(Path("pruned"), "digits", Store(uri), alias="champion")
    fetch("digits@champion", Path("pruned-again"), Store(uri))

A version holds the network as torch.export's graph with signature and example, beside it the folder that
`prunesearch apply` wrote, and a list of all hashes. No pickle is written or read. Importing this package does not
import MLflow, which takes a second.
"""

from search.model_registry.fetching import Fetched, fetch
from search.model_registry.registering import Registered, register
from search.model_registry.store import Store

__all__ = ["Fetched", "Registered", "Store", "fetch", "register"]
