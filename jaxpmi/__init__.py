"""jaxpmi: data-free continual learning by model inversion, in JAX."""

__version__ = "0.1.0"
