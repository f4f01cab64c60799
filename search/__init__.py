"""Search for channel-pruning policies: Ray Tune launches, Optuna proposes, MLflow shows.

    from search import Sweep

The command line does the same, see `search.cli`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.sweep import Sweep

__all__ = ["Sweep"]

for _name, _value in {  # read when the libraries are imported, so set before any module of the package imports them
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": "2",  # else what memory does not hold starts again for ever
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a trial that failed says why in a line
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports no metric; that must not end the sweep
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch and all that takes seconds, which not every command needs."""
    if name == "Sweep":
        from search.sweep import Sweep

        return Sweep
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
