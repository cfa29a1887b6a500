"""Measurements behind the documentation, each a program of its own: ``python -m benchmarks NAME``."""
