"""Benchmarks: they drive the builders and the step of `pipeline`, and keep records from which every published table is made."""
