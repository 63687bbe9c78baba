"""Measures: drives the builders and the step of `pipeline`, and keeps records from which every published table is made."""
