"""Measures through the builders and the step of `pipeline`, and publishes the records as tables."""
