"""Names the variants of the scaling benchmark, as its records do."""

ONE, WEAK, STRONG, APART = "one process", "weak", "strong", "apart"
# weak scaling with another way to average the gradients
DDP = "weak, DDP"
# apart, with gradients that are averaged with nobody: for the prediction
ALONE = "apart, averaging alone"
EXTRA = {"ddp": DDP}  # by the words of the option
