"""Low-rank additions to attention's linear layers (Hu et al. 2022), with diffusers' names."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from cranio_jax.models.layers import Attention


class LoRALinear(nnx.Linear):
    """A linear layer plus the product of two thin ones, which starts at zero.

    Its alpha is the rank, so the product's factor is 1.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        rank: int,
        use_bias: bool,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        super().__init__(features_in, features_out, use_bias=use_bias, dtype=dtype, rngs=rngs)
        thin = dict(use_bias=False, dtype=dtype, rngs=rngs)
        self.lora_A = nnx.Linear(
            features_in, rank, kernel_init=jax.nn.initializers.normal(1.0 / rank), **thin
        )
        self.lora_B = nnx.Linear(rank, features_out, kernel_init=nnx.initializers.zeros, **thin)

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "... a"]
    ) -> Float[Array, "... b"]:
        # Added to the output, not to the kernel: a bfloat16 kernel would round small changes away.
        return super().__call__(x) + self.lora_B(self.lora_A(x))


def add_lora(model: nnx.Module, rank: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Returns `model` with a `LoRALinear` for each projection of its attention layers."""

    def with_lora(layer):
        return LoRALinear(
            layer.in_features,
            layer.out_features,
            rank=rank,
            use_bias=layer.bias is not None,
            dtype=layer.dtype,
            rngs=rngs,
        )

    for _, layer in list(model.iter_modules()):
        if isinstance(layer, Attention):
            layer.to_q = with_lora(layer.to_q)
            layer.to_k = with_lora(layer.to_k)
            layer.to_v = with_lora(layer.to_v)
            layer.to_out[0] = with_lora(layer.to_out[0])
    return model


def is_lora(path: str) -> bool:
    """Returns True for the path of an addition's parameter."""
    return ".lora_" in path
