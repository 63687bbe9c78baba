"""Computes batch norm, ReLU and 3x3 max-pool in training."""
