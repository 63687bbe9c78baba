"""Keeps a run on disk: its folder, records, checkpoints, lock and console."""
