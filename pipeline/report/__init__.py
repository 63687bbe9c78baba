"""Draws the page of a run, or of several side by side, from run folders alone; the page needs no torch."""
