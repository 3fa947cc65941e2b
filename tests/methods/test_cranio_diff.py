"""Cranio-Diff: what a generated face depends on, and what its loss counts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cranio_jax import data
from cranio_jax.methods import make_method
from cranio_jax.models.patches import PatchCodec
from tests.fresh import fresh


@pytest.fixture
def batch(config):
    examples = data.Examples(data.make_builder(config.data), "train", config)
    return next(
        data.TrainingBatches(examples, 8, 0, partial(data.augment, settings=config.augment))
    )


def test_a_face_depends_on_xray_prompt_and_noise(config, batch):
    config.train.update(learning_rate=1e-2, warmup_steps=0, schedule="constant")
    method = make_method(config)
    state, frozen = fresh(method)
    generate = jax.jit(method.generate)
    seed = jax.random.key(2)

    def faces(changed, key=seed):
        return np.asarray(generate(state["params"], frozen, batch | changed, key))

    other_xrays = {"xray": np.roll(batch["xray"], 1, 0)}
    # Zero convolutions: a fresh ControlNet says nothing.
    np.testing.assert_array_equal(faces({}), faces(other_xrays))
    step = jax.jit(method.train_step)
    for _ in range(12):
        state, _ = step(state, frozen, batch, jax.random.key(1))
    for name, changed in (
        ("X-ray", other_xrays),
        ("prompt", {"prompt_ids": np.roll(batch["prompt_ids"], 1, 0)}),
        ("noise", {"id_hash": batch["id_hash"] + 1}),
    ):
        # What is not read changes no bit, as before training.
        assert np.abs(faces(changed) - faces({})).max() > 1e-4, name
    assert np.abs(faces({}, jax.random.key(3)) - faces({})).max() > 1e-4
    # The noise goes with the example, not with its place in the batch.
    turned = {name: np.roll(value, 3, 0) for name, value in batch.items()}
    np.testing.assert_allclose(faces(turned), np.roll(faces({}), 3, 0), atol=1e-5)
    # Without noise no draw differs from another.
    config.sampling.temperature = 0.0
    generate = jax.jit(make_method(config).generate)
    np.testing.assert_array_equal(faces({}, jax.random.key(3)), faces({}))


def test_loss_weight_and_dropped_prompts(config, batch):
    config.method.prompt_dropout = 0.1
    method = make_method(config)
    state, frozen = fresh(method)
    side = config.data.settings.size // method.factor
    draws = {
        "timesteps": jnp.full((8,), 300),
        "noise": jax.random.normal(jax.random.key(1), (8, side, side, method.channels)),
        "drop_prompt": jnp.zeros(8, bool),
    }

    def loss(**changed):
        compute = jax.jit(lambda *given: method.loss(*given)[0])
        return float(compute(state["params"], frozen, batch, draws | changed))

    plain = loss()
    assert loss(drop_prompt=jnp.ones(8, bool)) != plain
    config.method.loss_weight = "v_prediction"  # SNR + 1 = 1 / sigma^2, seen from the sample
    sigma2 = 1.0 - method.schedule.alphas_cumprod[300]
    assert loss() == pytest.approx(plain / sigma2, rel=1e-5)


def test_patch_codec_keeps_every_pixel():
    picture = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    codec = PatchCodec(4)
    latents = codec.encode(picture)
    assert latents.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(latents[1, 1, 2].reshape(4, 4, 3), picture[1, 4:8, 8:12])
    np.testing.assert_array_equal(codec.decode(latents), picture)
