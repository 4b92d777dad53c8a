"""Sparse training recipes, masks and networks, usable in any training loop."""
