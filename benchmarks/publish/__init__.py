"""Keeps the records, and makes every published table and figure from them."""
