"""Pruning: which channels to remove, how, the training in between, and the report."""
