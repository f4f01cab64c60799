"""The way through from Python: a sweep, its front, the policy to take, the pruned network.

    python experiments/from_python.py experiments/digits.yaml 12

In a notebook `sweep` alone shows the front.
"""

import sys

from search import Sweep

file, trials = sys.argv[1:]
sweep = Sweep.run(file, {"search.trials": int(trials)})
choice = sweep.best(max_macs="80%")
print(choice.explanation)
applied = sweep.apply(choice.policy, sweep.folder / "pruned")
print(f"test accuracy {applied.pruned.accuracy:.2%} with {applied.pruned.macs:,} MACs: {applied.folder}")
