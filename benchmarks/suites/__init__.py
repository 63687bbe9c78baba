"""Holds one file a benchmark: bench, loaders, step, end to end, ablation, start-up, saving; and make-folder."""
