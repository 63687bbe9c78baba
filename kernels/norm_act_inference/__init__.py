"""Computes batch norm with running statistics, residual and activation, after a max-pool if asked to."""
