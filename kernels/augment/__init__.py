"""Crops, flips, cuts out and normalises a gathered batch in one kernel."""
