"""Whole pipelines against diffusers', loaded from the folders that it writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cranio_jax import sharding
from cranio_jax.methods import make_method
from cranio_jax.prompts import make_tokenizer
from tests.pretrained.conftest import FAMILIES


def loaded(config):
    """`(method, state, frozen)` as training starts with."""
    method = make_method(config)
    return method, *method.init(jax.random.key(0), method.load(sharding.make_mesh(1, 1), frozen_only=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_fifty_steps_with_guidance(pipelines, settings, family):
    folder, reference = pipelines(family)
    config = settings(folder)
    method, state, frozen = loaded(config)
    prompts = ["portrait of a woman, 45", "portrait of a man, 65"]
    ids, rng, key = np.array([7, 8], np.uint32), np.random.default_rng(0), jax.random.key(3)
    xrays = rng.integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
    batch = {"xray": jnp.asarray(xrays), "id_hash": jnp.asarray(ids), "prompt_ids": jnp.asarray(make_tokenizer(config)(prompts))}
    faces = jax.jit(method.generate)(state["params"], frozen, batch, key)

    noise = np.stack([jax.random.normal(jax.random.fold_in(key, i), (8, 8, 4)) for i in ids])
    picture = torch.from_numpy(np.repeat(xrays, 3, -1).transpose(0, 3, 1, 2) / 255.0).float()
    with torch.no_grad():
        wanted = reference(
            prompts, picture, num_inference_steps=50, guidance_scale=7.5,
            latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)), output_type="pt",
        ).images.permute(0, 2, 3, 1).numpy()  # fmt: skip
    assert wanted.std() > 0.02
    np.testing.assert_allclose(np.asarray(faces) / 2 + 0.5, wanted, atol=1e-3)


def test_tokens_are_the_checkpoints(pipelines, settings):
    folder, reference = pipelines()
    text = ["Portrait of an old man, 65 years", ""]
    wanted = reference.tokenizer(text, padding="max_length", max_length=16, truncation=True).input_ids
    np.testing.assert_array_equal(make_tokenizer(settings(folder))(text), wanted)
