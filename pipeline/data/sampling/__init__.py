"""Draws order, crop, flip and Cutout box of each sample, and plans the batches; applies nothing."""
