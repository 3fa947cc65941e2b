"""The trained embedder: its margin, its statistics, and that it learns to tell people apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cranio_jax import data
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.methods.arcface import angular_margin, disturb
from tests.fresh import fresh


@pytest.fixture
def arcface(config, records):
    """The embedder's configuration at its smallest, on the records of the other tests."""
    from configs import arcface

    c = arcface.get_config("smoke")
    c.data = config.data
    c.method.update(channels=4, height=16, width=16)
    return c


def test_margin_is_added_to_the_angle():
    angles = np.linspace(0.05, 3.0, 12)
    cosines = np.cos(np.stack([angles, angles[::-1]], 1)).astype(np.float32)
    labels = np.arange(12) % 2
    got = angular_margin(jnp.asarray(cosines), jnp.asarray(labels), 0.3, 10.0)
    for i, label in enumerate(labels):
        angle = np.arccos(cosines[i, label])
        if angle + 0.3 < np.pi:
            assert got[i, label] == pytest.approx(10 * np.cos(angle + 0.3), rel=1e-4, abs=1e-4)
        assert got[i, 1 - label] == pytest.approx(10 * cosines[i, 1 - label], rel=1e-6)
    # Never again uphill: a larger angle is a smaller logit, beyond pi - margin too.
    line = np.cos(np.linspace(0.0, np.pi, 200)).astype(np.float32)[:, None]
    own = angular_margin(jnp.asarray(line), jnp.zeros(200, int), 0.3, 1.0)[:, 0]
    assert (np.diff(own) < 1e-6).all()
    slope = jax.grad(lambda c: angular_margin(c, jnp.zeros(3, int), 0.5, 1.0).sum())(
        jnp.array([[1.0], [-1.0], [0.0]])
    )
    assert np.isfinite(slope).all()


def test_disturbance_keeps_the_picture_where_it_is_none(arcface):
    faces = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)), jnp.float32)
    none = arcface.method.disturb.copy_and_resolve_references()
    none.update(shift=0.0, zoom=0.0, colour=0.0, grey=0.0)
    np.testing.assert_allclose(disturb(jax.random.key(0), faces, none), faces, atol=1e-5)
    none.grey = 1.0
    grey = disturb(jax.random.key(0), faces, none)
    np.testing.assert_allclose(grey, np.repeat(np.mean(faces, -1, keepdims=True), 3, -1), atol=1e-5)
    none.update(grey=0.0, shift=0.2)
    assert np.abs(disturb(jax.random.key(0), faces, none) - faces).mean() > 0.1


def test_a_step_updates_statistics_as_torch_does(arcface):
    method = make_method(arcface)
    state, _ = fresh(method)
    arcface.method.disturb.update(shift=0.0, zoom=0.0, colour=0.0, grey=0.0)
    batch = {
        "face": np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8),
        "subject_index": np.arange(8, dtype=np.int32),
    }
    after, metrics = jax.jit(method.train_step)(state, {}, batch, jax.random.key(1))
    seen = method.crop(jnp.asarray(batch["face"]))
    conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
    kernel = np.array(state["params"]["embedder"]["conv1.kernel"]).transpose(3, 2, 0, 1)
    norm = torch.nn.BatchNorm2d(4)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(kernel))
        norm(conv(torch.from_numpy(np.array(seen).transpose(0, 3, 1, 2))))
    np.testing.assert_allclose(
        after["statistics"]["bn1.mean"], norm.running_mean, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
        after["statistics"]["bn1.var"], norm.running_var, rtol=2e-3
    )  # torch's is unbiased
    assert np.isfinite(metrics["loss"]) and 0 <= metrics["accuracy"] <= 1


@pytest.mark.slow
def test_it_learns_people(arcface):
    arcface.train.update(
        num_steps=60, learning_rate=3e-3, warmup_steps=5, batch_size=32, weight_decay=0.0
    )
    arcface.method.update(margin=0.1)
    arcface.method.disturb.update(shift=0.0, zoom=0.0, colour=0.0, grey=0.0)
    method = make_method(arcface)
    builder = data.make_builder(arcface.data)
    people = data.subjects(builder, "train", arcface)
    assert method.classes == len(people) == 20
    examples = data.Examples(builder, "train", arcface, ("face",), people)
    batches = data.TrainingBatches(examples, 32, 0, lambda example, rng: example)
    state, _ = fresh(method)
    step, accuracy = jax.jit(method.train_step), []
    for _ in range(60):
        batch = next(batches)
        assert people[batch["subject_index"][0]]
        state, metrics = step(state, {}, batch, jax.random.key(1))
        accuracy.append(float(metrics["accuracy"]))
    assert np.mean(accuracy[-5:]) > 0.6 > 0.2 > np.mean(accuracy[:3])


def test_impossible_settings(arcface):
    arcface.method.height = 40
    with pytest.raises(InputError, match="method.height=40 is not a multiple of 16"):
        make_method(arcface)
    arcface.method.update(height=16, network="lenet")
    with pytest.raises(InputError, match="method.network='lenet' is not one of iresnet18"):
        make_method(arcface)
    arcface.method.network = "iresnet18"
    arcface.train.accumulate = 2
    with pytest.raises(InputError, match="train.accumulate=2: batch norms need"):
        make_method(arcface)
