"""Holds trained weights, each with its model card, and the registry that names them."""
