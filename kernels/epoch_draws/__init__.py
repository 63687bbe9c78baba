"""Draws an epoch's order and augmentation on the GPU."""
