"""Draws the figures of the records: bars, lines and their frame."""
