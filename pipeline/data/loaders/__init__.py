"""Loads batches: one backend a file, all with the same draws."""
