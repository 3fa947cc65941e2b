"""Counted operations against torch's counter and closed forms."""

import jax
import jax.numpy as jnp
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from launch.measure.flops import flops


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_and_its_gradients(stride):
    kernel, x = jnp.zeros((3, 3, 16, 32)), jnp.zeros((2, 8, 8, 16))

    def loss(kernel, x):
        out = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return (out**2).sum()

    layer = torch.nn.Conv2d(16, 32, 3, stride, 1, bias=False)
    with FlopCounterMode(display=False) as counter:
        (layer(torch.zeros(2, 16, 8, 8, requires_grad=True)) ** 2).sum().backward()
    assert flops(jax.grad(loss, (0, 1)), kernel, x) == pytest.approx(
        counter.get_total_flops(), rel=1e-6
    )
    assert flops(loss, kernel, x) == pytest.approx(counter.get_total_flops() / 3, rel=1e-6)


def test_loops_branches_and_recomputation():
    a = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    product = 2 * 8**3
    assert flops(lambda a: a @ a, a) == product
    assert flops(lambda a: jax.lax.fori_loop(0, 5, lambda i, b: a @ b, a), a) == 5 * product
    assert (
        flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a), a) == 2 * product
    )

    def inner(b):
        return jnp.sin(b @ b)

    def gradient(f):
        return jax.grad(lambda a: jnp.sin(f(jnp.sin(a @ a))).sum())

    assert flops(gradient(inner), a) == 6 * product
    assert flops(gradient(jax.checkpoint(inner)), a) == 7 * product
    with pytest.raises(ValueError, match="a loop of unknown length holds a product"):
        flops(lambda a: jax.lax.while_loop(lambda b: b[0, 0] > 0, lambda b: b @ a, a), a)
