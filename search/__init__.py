"""Search for channel-pruning policies: Ray Tune launches, Optuna proposes, MLflow shows."""
