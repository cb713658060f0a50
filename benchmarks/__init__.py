"""Benchmarks and their results: `python launch/bench.py --help`."""
