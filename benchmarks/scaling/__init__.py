"""Measures how a run scales over the GPUs of a host, and predicts more."""
