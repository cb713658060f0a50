"""Descents and learning rates, for whatever is optimised."""
