"""Metrics that run inside jit, and the registry of all metrics.

The modules register their metrics on import, in the order of a table's columns.
"""

from cranio_jax.metrics import pairs, sets, retrieval, masks  # isort: skip
from cranio_jax.metrics.images import MS_SSIM_SIDE, SSIM_SIDE, ms_ssim, psnr, ssim

__all__ = [
    "MS_SSIM_SIDE",
    "SSIM_SIDE",
    "masks",
    "ms_ssim",
    "pairs",
    "psnr",
    "retrieval",
    "sets",
    "ssim",
]
