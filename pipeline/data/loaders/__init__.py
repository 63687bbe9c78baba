"""Loads batches: one loader per file. All loaders apply the same draws."""
