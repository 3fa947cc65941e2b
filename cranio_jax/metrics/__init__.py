"""Metrics that run inside jit."""

from cranio_jax.metrics.images import MS_SSIM_SIDE, SSIM_SIDE, ms_ssim, psnr, ssim

__all__ = ["MS_SSIM_SIDE", "SSIM_SIDE", "ms_ssim", "psnr", "ssim"]
