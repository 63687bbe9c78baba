"""Trains: assembles a run, takes the steps, evaluates, and times them."""
