"""Computes batch norm, residual and ReLU in training."""
