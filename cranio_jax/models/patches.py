"""Blocks of pixels as channels, and back (space to depth)."""

import dataclasses

from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class PatchCodec:
    """A lossless alternative to the autoencoder: `patch` x `patch` pixels become channels."""

    patch: int

    def encode(self, picture: Float[Array, "b H W c"]) -> Float[Array, "b h w d"]:
        """Returns the picture's blocks of pixels as channels (space to depth)."""
        b, height, width, c = picture.shape
        p = self.patch
        blocks = picture.reshape(b, height // p, p, width // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(b, height // p, width // p, p * p * c)

    def decode(self, latents: Float[Array, "b h w d"]) -> Float[Array, "b H W c"]:
        """Returns the picture that `encode` encoded."""
        b, h, w, d = latents.shape
        p = self.patch
        blocks = latents.reshape(b, h, w, p, p, d // (p * p)).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(b, h * p, w * p, d // (p * p))
