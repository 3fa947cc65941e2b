"""What ships with the program: names, sizes, hashes, and what diffusers makes of it."""

import pathlib
import re

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cranio_jax import assets
from cranio_jax.data.prompts import make_tokenizer
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.pretrained import sha256

CARD = (assets.FOLDER / "README.md").read_text()


def test_what_ships_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    (tmp_path / "small_sd").mkdir()
    (tmp_path / "small_sd" / "model_index.json").touch()
    (tmp_path / "judge.safetensors").touch()
    assert assets.located("shipped:small_sd") == tmp_path / "small_sd"
    assert assets.located("shipped:judge.safetensors") == tmp_path / "judge.safetensors"
    assert assets.located("~/a/b") == pathlib.Path.home() / "a" / "b"
    with pytest.raises(InputError, match=r"Use one of judge.safetensors, small_sd\."):
        assets.located("shipped:../../etc")


def test_all_that_ships_is_small_and_has_its_hash_on_the_card():
    files = sorted(assets.FOLDER.rglob("*.safetensors"))
    stated = dict(re.findall(r"\| `([\w/.]+\.safetensors)` \| [\d.]+ \| `([0-9a-f]{64})` \|", CARD))
    assert stated == {str(f.relative_to(assets.FOLDER)): sha256(f) for f in files}
    assert sum(f.stat().st_size for f in assets.FOLDER.rglob("*") if f.is_file()) < 45e6
    names = re.findall(r"`shipped:([a-z_.]+)`", CARD)
    assert len(names) == 5 and all(assets.located(f"shipped:{name}").exists() for name in names)


def test_diffusers_draws_the_same_face():
    from configs import text_to_image

    config = text_to_image.get_config("published")
    config.pretrained.model = "shipped:phantom_sd"
    config.data.settings.size = 128
    config.prompt.length = 32
    config.sampling.update(num_steps=5, guidance_scale=2.0)
    method = make_method(config)
    mesh = sharding.make_mesh(1, 1)
    state, frozen = method.init(jax.random.key(0), method.load(mesh, frozen_only=False))
    prompt = "portrait of a woman, frontal view, 45 years old, 10 percent less weight"
    batch = {
        "xray": jnp.zeros((1, 128, 128, 1), jnp.uint8),
        "prompt_ids": jnp.asarray(make_tokenizer(config)([prompt])),
        "id_hash": jnp.zeros(1, jnp.uint32),
    }
    key = jax.random.key(3)
    face = jax.jit(method.generate)(state["ema"], frozen, batch, key)

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(assets.FOLDER / "phantom_sd")
    pipeline.set_progress_bar_config(disable=True)
    noise = np.asarray(jax.random.normal(jax.random.fold_in(key, 0), (1, 16, 16, 4)))
    with torch.no_grad():
        wanted = pipeline(
            prompt, num_inference_steps=5, guidance_scale=2.0,
            latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)), output_type="np",
        ).images  # fmt: skip
    assert wanted.std() > 0.1
    np.testing.assert_allclose(np.asarray(face) / 2 + 0.5, wanted, atol=1e-3)
