"""Networks in the form the sparse-training papers use for small images."""
