"""What inversion sees of a network: a chain of blocks that return moments."""
