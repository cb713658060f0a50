"""What `launch/bench.py` measures, a module per question, beside the results."""
