"""Computes batch norm, residual and activation in training."""
