"""Holds the one style of every figure."""
