"""Weights in and out: diffusers folders, torch's files, safetensors."""

from cranio_jax.pretrained.embedder import (
    Embedder,
    kinds_of,
    open_embedder,
    open_part,
    save_embedder,
)
from cranio_jax.pretrained.files import open_weights, sha256
from cranio_jax.pretrained.kinds import Kind, check_hash
from cranio_jax.pretrained.load import load, pick
from cranio_jax.pretrained.outline import FILE as OUTLINE
from cranio_jax.pretrained.outline import Outline, open_outline, save_outline
from cranio_jax.pretrained.pipeline import Pipeline, open_pipeline, read_settings
from cranio_jax.pretrained.save import renamed, save, tensors_of
from cranio_jax.pretrained.tokenizer import learn_tokenizer, open_tokenizer

__all__ = [
    "OUTLINE",
    "Embedder",
    "Kind",
    "Outline",
    "Pipeline",
    "check_hash",
    "kinds_of",
    "learn_tokenizer",
    "load",
    "open_embedder",
    "open_outline",
    "open_part",
    "open_pipeline",
    "open_tokenizer",
    "open_weights",
    "pick",
    "read_settings",
    "renamed",
    "save",
    "save_embedder",
    "save_outline",
    "sha256",
    "tensors_of",
]
