"""Draws what happens to each sample: order, crop, flip, Cutout box. Applies nothing."""
