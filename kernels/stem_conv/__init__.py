"""Computes the first convolution, 3x3 on three channels."""
