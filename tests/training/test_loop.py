"""Training: the same on any mesh and after a restart, and clear errors when it can't go on."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.lib import guard_lib

from cranio_jax import data, main
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.methods.optimizer import make_optimizer
from cranio_jax.models.unet import encode
from cranio_jax.runs.checkpoints import Checkpoints
from cranio_jax.runs.state import shardings_of
from cranio_jax.training import loop
from tests.fresh import fresh


def losses(workdir):
    return {
        e["step"]: e["loss"]
        for e in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    }


def train_in_parts(config, folder):
    """Asserts that a run in two parts is bit-identical to a whole one, and returns its losses.

    Leaves a workdir `half`, of which the first part is done.
    """
    config.train.log_every = 1
    config.augment.flip = 0.5  # so that the data's own random stream matters
    whole = loop.train(config, folder / "whole")
    config.train.stop_at = 3
    loop.train(config, folder / "parts")
    shutil.copytree(folder / "parts", folder / "half")
    config.train.stop_at = 0
    parts = loop.train(config, folder / "parts")
    assert int(parts["step"]) == 6
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert losses(folder / "whole") == losses(folder / "parts")
    assert len(set(losses(folder / "whole").values())) == 6
    return losses(folder / "whole")


def test_restart_is_bit_identical(config, tmp_path):
    train_in_parts(config, tmp_path)


@pytest.mark.eight_devices
def test_restart_on_other_devices(quick_config, tmp_path):
    """On half of the devices the examples are the same, but sums differ by their order."""
    quick_config.mesh.data = 2
    whole = train_in_parts(quick_config, tmp_path)
    quick_config.mesh.data = 1
    loop.train(quick_config, tmp_path / "half")
    assert losses(tmp_path / "half") == pytest.approx(whole, rel=1e-5)


@pytest.fixture
def batch(config):
    examples = data.Examples(data.make_builder(config.data), "train", config)
    return next(
        data.TrainingBatches(examples, 8, 0, partial(data.augment, settings=config.augment))
    )


def three_losses(config, batch, shape):
    mesh = sharding.make_mesh(*shape)
    method = make_method(config)
    step, key = loop.jit_step(method, mesh), sharding.random_key(1, mesh)
    made = fresh(method)
    state, frozen = jax.device_put(made, shardings_of(method, mesh)[1])
    if shape[1] > 1:
        assert any(
            not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state["params"])
        )
    found = []
    for _ in range(3):
        state, metrics = step(state, frozen, sharding.put_batch(batch, mesh), key)
        found.append(float(metrics["loss"]))
    return found


@pytest.mark.eight_devices
@pytest.mark.parametrize("shape", [(2, 4), pytest.param((8, 1), marks=pytest.mark.slow)])
def test_every_mesh_gives_the_same_losses(config, batch, monkeypatch, shape):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 2**11)
    config.train.warmup_steps = 0
    alone = three_losses(config, batch, (1, 1))
    assert alone[0] != alone[1] != alone[2]
    np.testing.assert_allclose(three_losses(config, batch, shape), alone, rtol=1e-5)


def test_accumulation_gives_the_same_step(config, batch):
    config.train.warmup_steps = 0
    alone = three_losses(config, batch, (1, 1))
    config.train.accumulate = 4
    np.testing.assert_allclose(three_losses(config, batch, (1, 1)), alone, rtol=1e-4)


def test_bfloat16_keeps_float32_masters(config, batch):
    config.compute_dtype = "bfloat16"
    method = make_method(config)
    state, frozen = fresh(method)
    state, metrics = jax.jit(method.train_step)(state, frozen, batch, jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "trained",
    [
        pytest.param(("controlnet",), marks=pytest.mark.slow),
        ("controlnet", "unet_lora"),
        pytest.param(("controlnet", "unet"), marks=pytest.mark.slow),
    ],
)
def test_only_what_is_trained_moves(config, batch, trained):
    config.method.trained = trained
    config.train.warmup_steps = 0
    method = make_method(config)
    state, frozen = fresh(method)
    assert set(state["params"]) == set(trained) and set(frozen) == {
        "controlnet",
        "unet",
        "text_encoder",
    } - set(trained)
    after, _ = jax.jit(method.train_step)(state, frozen, batch, jax.random.key(1))
    for name in trained:
        moved = max(
            float(jnp.abs(a - b).max())
            for a, b in zip(
                *map(jax.tree.leaves, (state["params"][name], after["params"][name])), strict=True
            )
        )
        assert moved > 0, name


def test_a_network_may_have_its_own_rate(config):
    """The first step of Adam is as long as the learning rate."""
    config.train.update(warmup_steps=0, schedule="constant", weight_decay=0.0, clip_norm=0.0)
    optimizer = make_optimizer(config.train, {"unet": 2e-4})
    params = {name: {"kernel": jnp.ones(3)} for name in ("controlnet", "unet")}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["controlnet"]["kernel"], -2e-3, rtol=1e-5)
    np.testing.assert_allclose(updates["unet"]["kernel"], -2e-4, rtol=1e-5)


@pytest.mark.slow
def test_a_networks_own_rate_is_in_the_step(config, batch):
    config.method.trained = ("controlnet", "unet")
    config.train.update(warmup_steps=0, schedule="constant", weight_decay=0.0)

    def moves(**rates):
        config.method.learning_rates.update(rates)
        method = make_method(config)
        state, frozen = fresh(method)
        after, _ = jax.jit(method.train_step)(state, frozen, batch, jax.random.key(1))
        moved = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()), state["params"], after["params"]
        )
        return [max(moved[name].values()) for name in config.method.trained]

    # The first step of Adam is as long as the learning rate.
    np.testing.assert_allclose(moves(), [2e-3, 2e-3], rtol=1e-2)
    np.testing.assert_allclose(moves(unet=2e-4), [2e-3, 2e-4], rtol=1e-2)


def test_a_frozen_unet_costs_no_more_than_it_must(config, batch):
    config.method.trained = ("controlnet",)
    config.compute_dtype = "bfloat16"
    method = make_method(config)
    state, frozen = jax.eval_shape(method.init, jax.random.key(0))
    assert {p.dtype for p in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}
    moments = [leaf for leaf in jax.tree.leaves(state["opt_state"]) if leaf.ndim]
    assert sum(m.size for m in moments) == 2 * sum(
        p.size for p in state["params"]["controlnet"].values()
    )

    def operations(f, *args):
        return jax.jit(f).lower(*args).cost_analysis()["flops"]

    unet, control = method.networks["unet"], method.networks["controlnet"]
    x, t, words = (
        jnp.zeros((8, 8, 8, 48), jnp.bfloat16),
        jnp.zeros(8),
        jnp.zeros((8, 16, 64), jnp.bfloat16),
    )
    picture = jnp.zeros((8, 32, 32, 3), jnp.bfloat16)
    residuals = jax.eval_shape(
        lambda p: control.bind(p)(x, t, words, picture), state["params"]["controlnet"]
    )
    encoder = operations(lambda p: encode(unet.bind(p), x, t, words), frozen["unet"])
    decoder = (
        operations(lambda p, r: unet.bind(p)(x, t, words, *r), frozen["unet"], residuals) - encoder
    )
    controlnet = operations(
        lambda p: control.bind(p)(x, t, words, picture), state["params"]["controlnet"]
    )
    draws = {
        "timesteps": jnp.zeros(8, int),
        "noise": jnp.zeros(x.shape),
        "drop_prompt": jnp.zeros(8, bool),
    }
    batch = jax.tree.map(jnp.asarray, batch)
    step = operations(
        lambda p, f: jax.grad(lambda p: method.loss(p, f, batch, draws)[0])(p),
        state["params"],
        frozen,
    )
    # The encoder has no backward pass, because no trained parameter comes before it. With one, the
    # total would be a ninth larger.
    assert step == pytest.approx(encoder + 2 * decoder + 3 * controlnet, rel=0.04)


def test_loss_that_is_not_finite_names_step_and_examples(quick_config, tmp_path):
    config = quick_config
    config.train.update(learning_rate=1e38, warmup_steps=0, clip_norm=0.0, checkpoint_every=0)
    words = (
        r"at step [1-6], whose batch held the examples [0-9a-f]{8}, .*lower train.learning_rate and"
        r" start again"
    )
    with pytest.raises(loop.NonFiniteLossError, match=words):
        loop.train(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest is None
    # The error's advice works.
    config.train.learning_rate = 1e-3
    assert int(loop.train(config, tmp_path)["step"]) == 6


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    "section,field,value,words",
    [
        (
            "train",
            "batch_size",
            9,
            "train.batch_size=9 does not divide over 2 devices; the nearest that does is 8",
        ),
        ("mesh", "data", 16, "mesh.data=16 x mesh.fsdp=1 is 16 devices, but there are 8"),
        ("train", "schedule", "sawtooth", "train.schedule='sawtooth'"),
        ("method", "codec", "jpeg", "method.codec='jpeg'"),
        ("method", "name", "pix3pix", "method.name='pix3pix'"),
    ],
)
def test_impossible_settings_leave_nothing_behind(config, tmp_path, section, field, value, words):
    config.mesh.data = 2
    config[section][field] = value
    with pytest.raises(InputError, match=words):
        main.run(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def like_an_accelerator(monkeypatch):
    """Makes reading an array count as a transfer, which `jax.transfer_guard` can see.

    Arrays on a CPU are otherwise read in place.
    """
    kind = type(jnp.zeros(1))
    value, copy, read = kind._value.fget, kind.copy_to_host_async, []

    def checked(method):
        def called(array):
            state = guard_lib.thread_local_state()
            read.append(state.device_to_host)
            if (
                state.device_to_host == guard_lib.TransferGuardLevel.DISALLOW
                and not state.explicit_device_get
            ):
                raise RuntimeError("Disallowed device-to-host transfer")
            return method(array)

        return called

    monkeypatch.setattr(kind, "_value", property(checked(value)))
    monkeypatch.setattr(kind, "copy_to_host_async", checked(copy))
    return read


def test_nothing_is_read_unasked(config, tmp_path, like_an_accelerator):
    """Training reads nothing implicitly while it logs, evaluates held-out faces and saves."""
    config.data.validation_subjects = 4
    config.train.update(num_steps=4, log_every=2, checkpoint_every=2)
    config.validation.update(every=2, num_steps=1, examples=4)
    with jax.transfer_guard("disallow"), pytest.raises(RuntimeError, match="Disallowed"):
        float(jnp.ones(()))
    loop.train(config, tmp_path / "run")
    assert guard_lib.TransferGuardLevel.DISALLOW in like_an_accelerator
