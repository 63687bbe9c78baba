"""Trains ResNets fast: DALI, mixed precision, torch.compile, CUDA graphs, accelerate; see `pipeline.api` and
README.md."""
