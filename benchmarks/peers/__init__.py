"""Rebuilds other loaders and training loops, to be timed beside ours."""
