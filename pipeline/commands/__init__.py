"""Holds one file a command of `python -m pipeline`: its arguments and its work."""
