"""Names the variants of the scaling benchmark, as its records do."""

ONE, WEAK, STRONG, APART = "one process", "weak", "strong", "apart"
# weak scaling with other ways to average the gradients
DDP, ONE_BUCKET = "weak, DDP", "weak, one bucket"
# apart, with gradients that are averaged with nobody: for the prediction
ALONE = "apart, averaging alone"
EXTRA = {"ddp": DDP, "one-bucket": ONE_BUCKET}  # by the words of the option
