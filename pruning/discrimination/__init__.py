"""What DCP solves for a group: `problem.py` has the losses, `surrogate.py` a model of them, `search.py` the picks."""
