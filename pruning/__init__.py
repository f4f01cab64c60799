"""Channel pruning: a torch network in, a smaller torch network out."""
