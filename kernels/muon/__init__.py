"""Moves all weights of a parameter group along their orthogonalised momentum, in few launches."""
