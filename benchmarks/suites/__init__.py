"""Holds one file a benchmark, and `make_folder`."""
