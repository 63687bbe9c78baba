"""Reads data sets: images or files with labels, split into parts."""
