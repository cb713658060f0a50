"""What inversion is good for beside continual learning: knowledge transfer, pruning, pictures."""
