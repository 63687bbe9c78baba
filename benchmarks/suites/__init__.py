"""Holds one file a benchmark: loaders, step, end to end, ablation, start-up, saving."""
