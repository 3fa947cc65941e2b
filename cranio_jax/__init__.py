"""Faces from skull X-rays: Cranio-Diff and its baselines in JAX."""

__version__ = "0.1.0"
