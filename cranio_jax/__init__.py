"""Faces from skull X-rays: Cranio-Diff and its baselines in JAX."""

__version__ = "0.2.0"
