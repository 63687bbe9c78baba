"""Times workloads fairly, and describes the machine that they ran on."""
