"""CLIP's text encoder (Radford et al. 2021; OpenCLIP's in Stable Diffusion 2)."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from cranio_jax.models.config import from_mapping
from cranio_jax.models.layers import ACTIVATIONS

# transformers writes its generic fields into every config.json; none of them changes this network.
_GENERIC = (
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "initializer_factor",
    "initializer_range",
    "attention_dropout",
    "dropout",
    "projection_dim",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "use_return_dict",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "is_decoder",
    "id2label",
    "label2id",
    "problem_type",
    "tie_word_embeddings",
    "use_cache",
    "gradient_checkpointing",
    "add_cross_attention",
    "cross_attention_hidden_size",
)


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Fields of a transformers config.json, with its defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> "CLIPTextConfig":
        """Reads the content of a config.json; ValueError names a field that is not implemented."""
        return from_mapping(cls, fields, dict.fromkeys(_GENERIC, ...))


class CLIPTextEmbeddings(nnx.Module):
    def __init__(self, c: CLIPTextConfig, *, dtype=None, rngs: nnx.Rngs):
        def embed(count):
            initializer = nnx.initializers.normal(0.02)
            return nnx.Embed(
                count, c.hidden_size, embedding_init=initializer, dtype=dtype, rngs=rngs
            )

        self.token_embedding = embed(c.vocab_size)
        self.position_embedding = embed(c.max_position_embeddings)

    def __call__(self, input_ids):
        places = jnp.arange(input_ids.shape[1])[None]
        return self.token_embedding(input_ids) + self.position_embedding(places)


class CLIPAttention(nnx.Module):
    """Causal self-attention."""

    def __init__(self, c: CLIPTextConfig, *, dtype=None, rngs: nnx.Rngs):
        width = c.hidden_size
        self.q_proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.heads = c.num_attention_heads

    def __call__(self, hidden):
        heads = (*hidden.shape[:2], self.heads, -1)
        q, k, v = (p(hidden).reshape(heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(attended.reshape(hidden.shape))


class CLIPMLP(nnx.Module):
    def __init__(self, c: CLIPTextConfig, *, dtype=None, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(c.hidden_size, c.intermediate_size, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(c.intermediate_size, c.hidden_size, dtype=dtype, rngs=rngs)
        self.act = ACTIVATIONS[c.hidden_act]

    def __call__(self, hidden):
        return self.fc2(self.act(self.fc1(hidden)))


class CLIPEncoderLayer(nnx.Module):
    def __init__(self, c: CLIPTextConfig, *, dtype=None, rngs: nnx.Rngs):
        width, eps = c.hidden_size, c.layer_norm_eps
        self.layer_norm1 = nnx.LayerNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)
        self.layer_norm2 = nnx.LayerNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)
        self.self_attn = CLIPAttention(c, dtype=dtype, rngs=rngs)
        self.mlp = CLIPMLP(c, dtype=dtype, rngs=rngs)

    def __call__(self, hidden):
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class CLIPEncoder(nnx.Module):
    def __init__(self, c: CLIPTextConfig, *, dtype=None, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [CLIPEncoderLayer(c, dtype=dtype, rngs=rngs) for _ in range(c.num_hidden_layers)]
        )

    def __call__(self, hidden, skip: int = 0):
        for layer in itertools.islice(self.layers, len(self.layers) - skip):
            hidden = layer(hidden)
        return hidden


class CLIPTextModel(nnx.Module):
    """Turns token ids into a sequence of vectors, which Stable Diffusion attends to."""

    def __init__(self, config: CLIPTextConfig, *, dtype=None, rngs: nnx.Rngs):
        c = self.config = config
        self.embeddings = CLIPTextEmbeddings(c, dtype=dtype, rngs=rngs)
        self.encoder = CLIPEncoder(c, dtype=dtype, rngs=rngs)
        self.final_layer_norm = nnx.LayerNorm(
            c.hidden_size, epsilon=c.layer_norm_eps, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, input_ids: Int[Array, "batch length"], skip: int = 0
    ) -> Float[Array, "batch length dim"]:
        """Returns a vector for each token.

        The last `skip` layers are left out, as by diffusers' `clip_skip`; the final norm is not.
        """
        return self.final_layer_norm(self.encoder(self.embeddings(input_ids), skip))
