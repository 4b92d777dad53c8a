"""Weights & Biases as a mirror of the store: nothing here is read by a training, and the store never reads it back."""
