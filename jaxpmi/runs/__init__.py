"""What carries a run: phases, checkpoints, accounts, and everything that it writes."""
