"""The matcher: its loss against plain NumPy, training on a toy task, and its evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.methods.siamese import contrastive
from cranio_jax.training.loop import train
from tests.evaluated import evaluated


@pytest.fixture
def siamese(config):
    from configs import siamese

    c = siamese.get_config("smoke")
    c.data = config.data
    c.train.update(num_steps=2, log_every=1, checkpoint_every=0)
    return c


def test_loss_is_hadsells():
    rng = np.random.default_rng(0)
    xrays, faces = rng.standard_normal((2, 5, 3)).astype(np.float32) / 2
    subjects, same, other = [0, 1, 0, 2, 2], [], []
    for i, a in enumerate(subjects):
        for j, b in enumerate(subjects):
            distance = np.linalg.norm(xrays[i] - faces[j])
            (same if a == b else other).append(
                distance**2 if a == b else max(0.0, 1.0 - distance) ** 2
            )
    assert min(other) == 0 < max(other)  # some pairs are beyond the margin, some within it
    got = contrastive(*map(jnp.asarray, (xrays, faces, subjects)), 1.0)
    assert float(got) == pytest.approx(np.mean(same) + np.mean(other), rel=1e-5)
    # The gradient is finite even where the X-ray and face vectors are equal.
    slope = jax.grad(lambda x: contrastive(x, x, jnp.array(subjects), 1.0))(xrays)
    assert np.isfinite(slope).all()


@pytest.mark.slow
def test_it_learns_to_match(siamese):
    siamese.train.update(learning_rate=3e-3, schedule="constant", warmup_steps=0)
    method = make_method(siamese)
    state, frozen = jax.jit(method.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    # A bright square at the same place in the X-ray and in the face.
    batch = {
        "xray": np.zeros((8, 32, 32, 1), np.uint8),
        "face": np.full((8, 32, 32, 3), 90, np.uint8),
    }
    for i in range(8):
        row, column = 4 * rng.integers(0, 7, 2)
        batch["xray"][i, row : row + 4, column : column + 4] = 255
        batch["face"][i, row : row + 4, column : column + 4, :2] = 200
    batch["subject_index"] = np.arange(8, dtype=np.int32)
    step, losses = jax.jit(method.train_step), []
    for _ in range(60):
        state, metrics = step(state, frozen, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0] and metrics["accuracy"] == 1.0
    vectors = method.embed(method.generation_params(state), frozen, batch)
    np.testing.assert_allclose(np.linalg.norm(vectors["xray"], axis=1), 1.0, atol=1e-5)
    assert ((vectors["xray"] @ vectors["face"].T).argmax(1) == np.arange(8)).mean() > 0.8


def test_evaluation_is_of_retrieval_alone(siamese, tmp_path):
    train(siamese, tmp_path)
    results = evaluated(siamese, tmp_path)
    assert results["rows"] == {} and set(results["retrieval"]) == {"siamese"}
    part = results["retrieval"]["siamese"]["same/all"]
    assert set(part["rows"]) == {"siamese", "shuffled X-rays", "another real face of the subject"}
    subjects, values = results["by_subject"]["subjects"], part["by_subject"]["siamese"]["recall@1"]
    assert len(values) == len(subjects) == results["subjects"]
    assert np.mean(values) == pytest.approx(part["rows"]["siamese"]["recall@1"]["mean"])
    assert "Retrieval, siamese, same/all" in (tmp_path / "table.md").read_text()


def test_bad_settings(siamese):
    siamese.train.accumulate = 2
    with pytest.raises(InputError, match=r"train.accumulate=2"):
        make_method(siamese)
    siamese.train.accumulate, siamese.method.network = 1, "resnet"
    with pytest.raises(InputError, match=r"network"):
        make_method(siamese)
