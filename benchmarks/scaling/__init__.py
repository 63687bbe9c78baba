"""Measures the speed-up of a run on the GPUs of a host, and predicts that on more GPUs."""
