"""Takes a trained network out of its run and predicts with it."""
