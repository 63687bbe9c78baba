"""Rebuilds the loaders and training loops of others, as baselines of ours."""
