"""Groups as values: how points, counts, labels and regions are written to a group and read back from it."""
