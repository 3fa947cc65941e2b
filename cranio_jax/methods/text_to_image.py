"""Stable Diffusion on faces and prompts alone, without an X-ray, as a method.

It is the prior that a ControlNet is added to, and the row "prompt alone" of a table.
"""

from cranio_jax.methods.cranio_diff import CranioDiff


class TextToImage(CranioDiff):
    """Cranio-Diff without its ControlNet; see `methods.base.Method`."""

    reads_xrays = False


METHOD = TextToImage
