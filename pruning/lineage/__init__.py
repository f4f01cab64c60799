"""Follow channels through a traced network: which positions of which tensors are the same channel.

Every output channel of a convolution or linear layer gets a fresh id, and tensors of ids, shaped like the activations,
run through the same graph as the activations. Operations that move data move the ids; sums unite them; what has no
rule pins them, with the reason. See `channels.py` for the ids, `modules.py` and
`functions.py` for the operations, `attributes.py` for numbers that code takes from modules, `trial.py` for layers of
somebody else's, `trace.py` for the graph and `exported.py` for another one; `segment.py` runs a part of it,
`results.py` tells what it holds in memory, `mixing.py` has operations over channels see the kept ones. `computed.py`
knows of weights that are computed, `shapes.py` of layers that need no run.
"""

from pruning.lineage.channels import FIXED, Lineage, Note, Role
from pruning.lineage.results import Result, results
from pruning.lineage.segment import Segment, Traced, Values
from pruning.lineage.trace import EXPORT, EvalGraph, eval_graph, follow, skeleton

__all__ = [
    "EXPORT",
    "FIXED",
    "EvalGraph",
    "Lineage",
    "Note",
    "Result",
    "Role",
    "Segment",
    "Traced",
    "Values",
    "eval_graph",
    "follow",
    "results",
    "skeleton",
]
