"""Gradient checkpointing: the same gradients in less memory, under the same names."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.methods.base import Method
from cranio_jax.training import loop

COUNT = 32
QUICKLY = {"xla_backend_optimization_level": 0}


@pytest.fixture
def one_level(config):
    """The smallest U-Net and ControlNet that have layers of every kind."""
    config.method.trained = ("controlnet", "unet")
    config.method.unet.update(block_out_channels=(8,), norm_num_groups=4, attention_head_dim=2)
    config.method.unet.down_block_types = ("CrossAttnDownBlock2D",)
    config.method.unet.up_block_types = ("CrossAttnUpBlock2D",)
    config.method.controlnet.conditioning_embedding_out_channels = (2, 2, 2)
    return config


def loss_of(method):
    """Returns the loss as a function of the trained parameters, and these; all is noise."""
    rng, side = np.random.default_rng(0), method.size // method.factor

    def noise(*shape):
        return 0.2 * rng.standard_normal(shape, np.float32)

    params = {
        name: {path: noise(*shape) for path, shape in network.shapes().items()}
        for name, network in method.networks.items()
    }
    frozen = {"text_encoder": params.pop("text_encoder")}
    batch = {
        "xray": rng.integers(0, 256, (COUNT, method.size, method.size, 1), np.uint8),
        "latents": noise(COUNT, side, side, method.channels),
        "context": noise(COUNT, 20, 64),
    }
    batch = jax.tree.map(jnp.asarray, batch)
    draws = {"timesteps": 30 * jnp.arange(COUNT), "noise": jnp.flip(batch["latents"], 0)}

    def loss(params):
        return method.loss(params, frozen, batch, draws)[0]

    return loss, params


def test_gradients_are_equal_and_take_less_memory(one_level):
    found = {}
    for one_level.train.remat in (False, True):
        loss, params = loss_of(make_method(one_level))
        lowered = jax.jit(jax.grad(loss)).lower(params)
        compiled = lowered.compile(compiler_options=QUICKLY | loop.KEEP_BARRIERS)
        memory = compiled.memory_analysis().temp_size_in_bytes
        found[one_level.train.remat] = compiled(params), memory
    (plain, usual), (again, less) = found[False], found[True]
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for name, part in plain.items():
        largest = max(np.abs(slope).max() for slope in part.values())
        assert largest > 0
        for path, slope in part.items():
            np.testing.assert_allclose(again[name][path], slope, rtol=1e-4, atol=1e-5 * largest)
    assert less < 0.5 * usual


def test_a_training_step_keeps_less_on_a_cpu_too():
    """XLA's CPU compiler would undo it, if it were let."""

    def layer(x):
        return jnp.tanh(jnp.sin(x) * jnp.cos(x)) * jnp.exp(-x * x)

    def train_step(state, frozen, batch, key):
        def loss(params):
            x = batch["x"] * params[None]
            for _ in range(8):
                x = jax.checkpoint(layer)(x)
            return (x**2).sum()

        return {"params": jax.grad(loss)(state["params"])}, {}

    def init(key):
        return {"params": jnp.ones(64)}, {}

    def memory(remat):
        method = mock.Mock(spec=Method, init=init, train_step=train_step, remat=remat)
        step = loop.jit_step(method, mesh)
        args = ({"params": jnp.ones(64)}, {}, {"x": jnp.ones((4096, 64))}, jax.random.key(0))
        return step.lower(*args).compile().memory_analysis().temp_size_in_bytes

    mesh = sharding.make_mesh(1, 1)
    assert memory(remat=True) < 0.7 * memory(remat=False)


def test_methods_without_a_unet_refuse_it(config):
    from configs import pix2pix

    c = pix2pix.get_config("smoke")
    c.data.data_dir = config.data.data_dir
    make_method(c)
    c.train.remat = True
    with pytest.raises(InputError, match="train.remat=True: method.name='pix2pix' has no U-Net"):
        make_method(c)
