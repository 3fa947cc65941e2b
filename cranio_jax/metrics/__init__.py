"""Metrics that run inside jit."""

from cranio_jax.metrics.images import psnr, ssim

__all__ = ["psnr", "ssim"]
