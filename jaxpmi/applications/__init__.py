"""Jobs that use inverted images outside continual learning, and how their results are measured."""
