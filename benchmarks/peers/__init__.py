"""Rebuilds loaders and training loops of others, and runs their programs, as baselines of ours."""
