"""Computes the first convolution, its batch norm and ReLU."""
