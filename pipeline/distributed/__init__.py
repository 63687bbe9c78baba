"""Connects the processes of a run and averages their gradients."""
