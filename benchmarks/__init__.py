"""Measures through the builders and the step of `pipeline`, and keeps records that make every published table."""
