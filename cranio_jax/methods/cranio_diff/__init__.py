"""Cranio-Diff: latent diffusion with a ControlNet on the skull X-ray and a biometric prompt."""

from cranio_jax.methods.cranio_diff.method import CranioDiff

__all__ = ["METHOD", "CranioDiff"]

METHOD = CranioDiff
