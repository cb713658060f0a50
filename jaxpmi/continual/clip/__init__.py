"""Continual learning with CLIP: adapters are trained, and classes may have only a name."""
