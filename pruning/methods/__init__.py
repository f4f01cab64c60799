"""Pruning in which training and the choice of channels take turns. One file a paper."""
