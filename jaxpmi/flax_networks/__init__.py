"""Flax networks as they are: in by `from_nnx` and `from_linen`, and back out."""
