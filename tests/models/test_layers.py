"""Layers against the library's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cranio_jax.models import layers
from cranio_jax.models.layers import Conv, attend, cudnn_takes


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    "stride,padding",
    [(1, ((1, 1), (1, 1))), (2, ((0, 1), (0, 1))), (2, ((0, 0), (0, 0))), (1, ((0, 0), (0, 0)))],
)
@pytest.mark.parametrize("side,use_bias", [((3, 4), True), ((3, 4), False), ((8, 8), True)])
def test_convolution_is_the_librarys(kernel, stride, padding, side, use_bias):
    def make(kind):
        return kind(
            5,
            40,
            (kernel, kernel),
            strides=stride,
            padding=padding,
            use_bias=use_bias,
            rngs=nnx.Rngs(0),
        )

    ours, theirs = make(Conv), make(nnx.Conv)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, *side, 5)), jnp.float32)

    def both(layer):
        def total(layer, x):
            out = layer(x)
            return (out * jnp.sin(jnp.arange(out.size).reshape(out.shape))).sum(), out

        (_, out), gradients = nnx.value_and_grad(total, argnums=(0, 1), has_aux=True)(layer, x)
        return out, jax.tree.leaves(gradients)

    (out, slopes), (wanted, wanted_slopes) = both(ours), both(theirs)
    # On a CPU small pictures and kernels are a product, others are not: here are both.
    product = "dot_general" in str(jax.make_jaxpr(ours)(x))
    assert product == (jax.default_backend() == "cpu" and (kernel == 1 or out.size <= 40 * 40))
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    assert len(slopes) == 2 + use_bias
    for slope, other in zip(slopes, wanted_slopes, strict=True):
        np.testing.assert_allclose(slope, other, rtol=1e-5, atol=1e-5)


def test_grouped_convolution_stays_one():
    layer = Conv(8, 8, (3, 3), padding=((0, 0), (0, 0)), feature_group_count=8, rngs=nnx.Rngs(0))
    assert layer(jnp.zeros((1, 3, 3, 8))).shape == (1, 1, 1, 8)


def test_cudnn_is_asked_for_what_it_takes_alone(monkeypatch):
    def query(head, dtype):
        return jnp.zeros((1, 4, 2, head), dtype)

    assert not cudnn_takes(query(64, jnp.bfloat16))  # there is no such device here

    class Device:
        class client:
            platform_version = "cuda 12090"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Device])
    assert cudnn_takes(query(40, jnp.bfloat16)) and cudnn_takes(query(80, jnp.float16))
    others = (
        query(64, jnp.float32),
        query(160, jnp.bfloat16),
        query(44, jnp.bfloat16),
        jnp.zeros((1, 5, 2, 40), jnp.bfloat16),
    )
    assert not any(cudnn_takes(q) for q in others)


@pytest.mark.parametrize("tokens", [77, 64])
def test_cudnn_is_given_even_lengths(monkeypatch, tokens):
    """Of an odd one it takes no gradient; what is added is not seen."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal((2, n, 2, 8)), jnp.float32) for n in (16, tokens, tokens)
    )

    def total(q, k, v):
        return (attend(q, k, v) * jnp.sin(jnp.arange(q.size).reshape(q.shape))).sum()

    wanted = jax.grad(total, argnums=(0, 1, 2))(q, k, v)
    theirs, given = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, key_value_seq_lengths, implementation):
        given.append((k.shape[1], implementation))
        return theirs(q, k, v, key_value_seq_lengths=key_value_seq_lengths)

    monkeypatch.setattr(layers, "cudnn_takes", lambda q: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    got = jax.grad(total, argnums=(0, 1, 2))(q, k, v)
    assert given == [(78 if tokens == 77 else 64, "cudnn")]
    for slope, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(slope, other, atol=1e-5)
