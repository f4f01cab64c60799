"""MLflow as a view of a sweep: written by the driver only, through a file that survives an outage.

    with Tracker(folder, experiment) as tracker:   # every call appends one line to the outbox and returns
        tracker.start(baseline, widths)
        tracker.trial_started(record) …
    sync(folder)                                   # later: what MLflow did not get

Importing this package does not import MLflow, which takes a second.
"""

from search.tracking.place import default_uri, store_uri
from search.tracking.server import serve, ui_command
from search.tracking.tracker import Tracker, sync, without_secrets

__all__ = ["Tracker", "default_uri", "serve", "store_uri", "sync", "ui_command", "without_secrets"]
