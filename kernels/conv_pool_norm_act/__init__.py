"""Computes a 3x3 convolution, max-pool, batch norm and activation of an input that needs no gradient."""
