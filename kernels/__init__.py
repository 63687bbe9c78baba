"""Holds the Triton kernels of quickres, one folder for each op."""
