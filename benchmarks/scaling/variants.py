"""Names the variants of the scaling benchmark, as its records do."""

ONE, WEAK, STRONG, APART = "one process", "weak", "strong", "apart"
