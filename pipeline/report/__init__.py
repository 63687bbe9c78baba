"""Draws `report.html`, one self-contained page of a run or of several side by side, from run folders alone. Imports no torch."""
