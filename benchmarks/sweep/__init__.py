"""Trains a recipe with lists of overrides, and compares the results."""
