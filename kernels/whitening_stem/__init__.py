"""Computes a frozen 2x2 convolution of images, its bias and GELU."""
