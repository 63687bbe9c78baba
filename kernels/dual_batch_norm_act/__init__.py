"""Computes the two batch norms before a projection block's sum, the sum and ReLU."""
