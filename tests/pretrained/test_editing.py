"""Faces made from photographs: image-to-image against diffusers, and inversion against itself."""

import diffusers
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img

from cranio_jax.data.prompts import make_tokenizer
from cranio_jax.diffusion import editing, run
from cranio_jax.distributed import sharding
from cranio_jax.methods import make_method
from cranio_jax.methods.cranio_diff import variants

PROMPTS = ["a woman, 45", "a man, 65"]
TRUE = ["a woman, 25", "a man, 25"]
IDS, KEY = np.array([7, 8], np.uint32), jax.random.key(3)
FACES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def ready(pipelines, settings):
    """Returns a function `(family, **sampling) -> (method, params, batch, reference)`."""

    def make(family, **sampling):
        folder, reference = pipelines(family)
        config = settings(folder)
        config.method.name = "text_to_image"
        config.method.trained = ("unet",)
        config.sampling.update(sampler="ddim", **sampling)
        method = make_method(config)
        published = method.load(sharding.make_mesh(1, 1), frozen_only=False)
        state, frozen = method.init(jax.random.key(0), published)
        tokens = make_tokenizer(config)
        batch = {
            "face": jnp.asarray(FACES),
            "xray": jnp.zeros((2, 16, 16, 1), jnp.uint8),
            "id_hash": jnp.asarray(IDS),
            "prompt_ids": tokens(PROMPTS),
            "true_ids": tokens(TRUE),
        }
        return method, state["params"] | frozen, batch, reference

    return make


def wanted(**changes):
    return ml_collections.ConfigDict(dict(way="noise", strength=0.6, iterations=5) | changes)


@pytest.mark.parametrize("family", ["1.5", "2.1-v"])
def test_image_to_image_is_that_of_diffusers(ready, family, monkeypatch):
    method, params, batch, reference = ready(family, num_steps=10, guidance_scale=3.0)
    with jax.disable_jit():
        ours = np.asarray(variants.vary(method, params, batch, KEY, wanted())) / 2 + 0.5

    # The same latents and noise.
    latents = np.asarray(method._latents(params, batch)).transpose(0, 3, 1, 2)
    noise = np.stack([jax.random.normal(jax.random.fold_in(KEY, i), (8, 8, 4)) for i in IDS])
    monkeypatch.setattr(
        pipeline_stable_diffusion_img2img,
        "randn_tensor",
        lambda *_, **__: torch.from_numpy(noise.transpose(0, 3, 1, 2)),
    )
    settings = method.scheduler_config
    scheduler = getattr(diffusers, settings["_class_name"]).from_config(settings)
    reference.unet.register_to_config(sample_size=8)  # which this pipeline asks for
    names = ("vae", "text_encoder", "tokenizer", "unet")
    parts = {name: reference.components[name] for name in names}
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(
        **parts,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        theirs = pipeline(
            PROMPTS,
            image=torch.from_numpy(latents),
            strength=0.6,
            num_inference_steps=10,
            guidance_scale=3.0,
            output_type="pt",
        ).images
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    assert theirs.std() > 0.05
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("family", ["1.5", "2.1-v"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_sampling_leads_back_from_inversion(ready, family, spacing):
    method, params, batch, _ = ready(family, num_steps=50, guidance_scale=1.0, spacing=spacing)
    table = editing.last_steps(method.table, 1.0)
    latents = method._latents(params, batch)
    context = method._context(params, batch["true_ids"])
    network = method._denoiser(params, None, 1.0)

    def denoise(x, t):
        return network(x, t, context)

    @jax.jit
    def there_and_back(latents):
        x = editing.inverted(denoise, latents, table, method.schedule)
        return x, run(denoise, x, table, method.schedule)

    x, back = there_and_back(latents)
    assert jnp.abs(x - latents).max() > 1  # it went somewhere
    np.testing.assert_allclose(back, latents, atol=1e-2)
