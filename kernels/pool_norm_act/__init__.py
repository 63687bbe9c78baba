"""Computes 2x2 max-pool, batch norm and activation in training."""
