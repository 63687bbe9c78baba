"""Times each Triton kernel beside torch.compile of its reference."""
