"""Updates the weights: optimizers, the learning-rate schedule and the moving average."""
