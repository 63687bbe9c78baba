"""Computes cross-entropy with smoothed labels."""
