"""Persistent, boxed IPython kernels as environments for machine-learning-engineering agents."""

__version__ = "0.1.0"
