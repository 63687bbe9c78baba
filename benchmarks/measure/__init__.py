"""Times workloads in turn, and describes the machine that they ran on."""
