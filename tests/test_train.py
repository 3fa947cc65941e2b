"""Training: the same on any mesh, the same after a restart, and clear words when it can't go on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cranio_jax import data, sharding, train
from cranio_jax.checkpoint import Checkpoints
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method


def losses(workdir):
    return {e["step"]: e["loss"] for e in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())}


def test_restart_is_bit_identical(config, tmp_path):
    config.train.log_every = 1
    config.augment.flip = 0.5  # so that the data's own random stream matters
    whole = train.train(config, tmp_path / "whole")
    config.train.stop_at = 3
    train.train(config, tmp_path / "parts")
    config.train.stop_at = 0
    parts = train.train(config, tmp_path / "parts")
    assert int(parts["step"]) == 6
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert len(set(losses(tmp_path / "whole").values())) == 6


@pytest.fixture
def batch(config):
    examples = data.Examples(data.make_builder(config.data), "train", config)
    return next(data.training_batches(examples, 8, 0, config.augment, 0, 1))


def three_losses(config, batch, shape):
    mesh = sharding.make_mesh(*shape)
    method = make_method(config)
    step = train.jit_step(method, mesh, 0)
    state, frozen = jax.device_put(method.init(jax.random.key(0)), train.shardings_of(method, mesh)[1])
    if shape[1] > 1:
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state["params"]))
    found = []
    for _ in range(3):
        state, metrics = step(state, frozen, sharding.put_batch(batch, mesh))
        found.append(float(metrics["loss"]))
    return found


def test_every_mesh_gives_the_same_losses(config, batch, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 2**11)
    config.train.warmup_steps = 0
    alone = three_losses(config, batch, (1, 1))
    assert alone[0] != alone[1] != alone[2]
    for shape in ((8, 1), (4, 2), (2, 4)):
        np.testing.assert_allclose(three_losses(config, batch, shape), alone, rtol=1e-5)


def test_accumulation_gives_the_same_step(config, batch):
    config.train.warmup_steps = 0
    alone = three_losses(config, batch, (1, 1))
    config.train.accumulate = 4
    np.testing.assert_allclose(three_losses(config, batch, (1, 1)), alone, rtol=1e-4)


def test_bfloat16_keeps_float32_masters(config, batch):
    config.compute_dtype = "bfloat16"
    method = make_method(config)
    state, frozen = method.init(jax.random.key(0))
    state, metrics = jax.jit(method.train_step)(state, frozen, batch, jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {jnp.dtype("float32")}


@pytest.mark.parametrize("trained", [("controlnet",), ("controlnet", "unet")])
def test_only_what_is_trained_moves(config, batch, trained):
    config.method.trained = trained
    config.train.warmup_steps = 0
    method = make_method(config)
    state, frozen = method.init(jax.random.key(0))
    assert set(state["params"]) == set(trained) and set(frozen) == {"controlnet", "unet", "text_encoder"} - set(trained)
    after, _ = jax.jit(method.train_step)(state, frozen, batch, jax.random.key(1))
    for name in trained:
        moved = max(
            float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (state["params"][name], after["params"][name])), strict=True)
        )
        assert moved > 0, name


def test_loss_that_is_not_finite_names_step_and_examples(config, tmp_path):
    config.train.update(learning_rate=1e38, warmup_steps=0, clip_norm=0.0, checkpoint_every=0)
    with pytest.raises(train.NonFiniteLossError, match=r"at step [1-6], whose batch held the examples [0-9a-f]{8}, "):
        train.train(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest is None


@pytest.mark.parametrize(
    "section,field,value,words",
    [
        ("train", "batch_size", 9, "train.batch_size=9 does not divide over 8 devices"),
        ("mesh", "data", 16, "mesh.data=16 x mesh.fsdp=1 is 16 devices, but there are 8"),
        ("train", "schedule", "sawtooth", "train.schedule='sawtooth'"),
        ("method", "codec", "jpeg", "method.codec='jpeg'"),
        ("method", "name", "pix3pix", "method.name='pix3pix'"),
    ],
)
def test_impossible_settings_leave_nothing_behind(config, tmp_path, section, field, value, words):
    config[section][field] = value
    with pytest.raises(InputError, match=words):
        train.train(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_another_experiments_folder_is_refused(config, tmp_path):
    config.train.stop_at = 1
    train.train(config, tmp_path)
    config.train.learning_rate = 0.5
    with pytest.raises(InputError, match=r"holds another experiment \(train.learning_rate is 0.001 there and 0.5 here\)"):
        train.train(config, tmp_path)
