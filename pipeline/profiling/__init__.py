"""Measures a training step and estimates its work, its memory and its bottleneck."""
