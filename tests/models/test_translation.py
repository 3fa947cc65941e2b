"""The networks of Pix2Pix, CycleGAN and CUT against the published torch ones.

The tests compare keys, parameter counts and values.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cranio_jax import pretrained
from cranio_jax.distributed import sharding
from cranio_jax.models.functional import Network, is_statistic
from cranio_jax.models.translation import (
    ConvTranspose,
    NLayerDiscriminator,
    PatchSampler,
    ResnetGenerator,
    UnetGenerator,
    levels_of,
)
from cranio_jax.pretrained.names import torch_key
from tests.models.torch_translation import TorchPatches, TorchResnet, TorchUnet


def loaded(network, model, tmp_path):
    """Returns a torch model's parameters, read by the general rule from a published-style file."""
    torch.save(model.state_dict(), tmp_path / "net.pth")
    shapes = network.shapes()
    with pretrained.open_weights(tmp_path / "net.pth") as tensors:
        return pretrained.load(
            shapes,
            tensors,
            dict.fromkeys(shapes, sharding.replicated(sharding.make_mesh())),
            "net.pth",
            jnp.float32,
        )


def drawn(model):
    """Sets all values to random ones, including the statistics of batch norms."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.05)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.abs_().add_(0.8)
    return model.eval()


CASES = {
    "unet, batch": (lambda rngs: UnetGenerator(6, 8, rngs=rngs), lambda: TorchUnet(6, 8), 64),
    "unet, instance": (
        lambda rngs: UnetGenerator(5, 8, "instance", rngs=rngs),
        lambda: TorchUnet(5, 8, "instance"),
        64,
    ),
    "resnet": (lambda rngs: ResnetGenerator(2, 8, rngs=rngs), lambda: TorchResnet(2, 8), 32),
    "resnet, batch": (
        lambda rngs: ResnetGenerator(1, 8, "batch", rngs=rngs),
        lambda: TorchResnet(1, 8, "batch"),
        20,
    ),
    "resnet, antialiased": (
        lambda rngs: ResnetGenerator(2, 8, antialias=True, rngs=rngs),
        lambda: TorchResnet(2, 8, antialias=True),
        32,
    ),
    "patches": (lambda rngs: NLayerDiscriminator(3, 8, rngs=rngs), lambda: TorchPatches(3, 8), 70),
    "patches, antialiased": (
        lambda rngs: NLayerDiscriminator(3, 8, 2, "instance", antialias=True, rngs=rngs),
        lambda: TorchPatches(3, 8, 2, "instance", True),
        40,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_forward(case, tmp_path):
    make, reference, size = CASES[case]
    network, model = Network(make), drawn(reference())
    params = loaded(network, model, tmp_path)
    x = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    keys = () if "unet" not in case else (jax.random.split(jax.random.key(0), 2),)

    def run(params, x):
        module = network.bind(params)
        # The comparison is without noise.
        for _, part in module.iter_modules():
            if getattr(part, "dropout", None):
                part.dropout = 0
        return module(x, *keys)

    got = jax.jit(run)(params, x)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    assert wanted.std() > 1e-3
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max() + 2e-6)


def test_published_layouts():
    """Parameter counts are those that the authors' programs print; keys are those of torch."""

    def count(network):
        return sum(
            np.prod(shape) for path, shape in network.shapes().items() if not is_statistic(path)
        )

    unet, patches = (
        Network(lambda rngs: UnetGenerator(8, rngs=rngs)),
        Network(lambda rngs: NLayerDiscriminator(6, rngs=rngs)),
    )
    resnet = Network(lambda rngs: ResnetGenerator(9, rngs=rngs))
    alone = Network(lambda rngs: NLayerDiscriminator(3, norm="instance", rngs=rngs))
    sampler = Network(lambda rngs: PatchSampler((3, 128, 256, 256, 256), rngs=rngs))
    counts = [round(count(network) / 1e6, 3) for network in (unet, patches, resnet, alone, sampler)]
    assert counts == [54.414, 2.769, 11.378, 2.765, 0.56]
    for network, model in (
        (unet, TorchUnet(8)),
        (patches, TorchPatches(6)),
        (resnet, TorchResnet(9)),
    ):
        buffers = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
        assert {torch_key(path) for path in network.shapes()} == buffers
    assert [levels_of(size) for size in (64, 128, 256, 512)] == [6, 7, 8, 8]
    with pytest.raises(ValueError, match="not a multiple"):
        levels_of(100)


@pytest.mark.parametrize(
    "kernel,extra,height,width,count", [(4, 0, 1, 1, 2), (4, 0, 5, 3, 2), (3, 1, 6, 4, 9)]
)
def test_transposed_convolution(kernel, extra, height, width, count):
    """Values and gradients, including those of a picture of one pixel."""
    layer = Network(lambda rngs: ConvTranspose(5, 7, kernel, use_bias=True, rngs=rngs))
    reference = torch.nn.ConvTranspose2d(5, 7, kernel, 2, 1, output_padding=extra)
    params = {
        "kernel": jnp.asarray(reference.weight.detach().numpy().transpose(2, 3, 1, 0)),
        "bias": jnp.asarray(reference.bias.detach()),
    }
    rng = np.random.default_rng(0)
    x, slope = (
        rng.standard_normal((count, height, width, 5)),
        rng.standard_normal((count, 2 * height, 2 * width, 7)),
    )
    x, slope = x.astype(np.float32), slope.astype(np.float32)
    moved = torch.from_numpy(x.transpose(0, 3, 1, 2)).requires_grad_()
    wanted = reference(moved)
    wanted.backward(torch.from_numpy(slope.transpose(0, 3, 1, 2)))
    got, backward = jax.vjp(lambda params, x: layer.bind(params)(x), params, x)
    np.testing.assert_allclose(got, wanted.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)
    slopes, back = backward(jnp.asarray(slope))
    np.testing.assert_allclose(back, moved.grad.numpy().transpose(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(
        slopes["kernel"], reference.weight.grad.numpy().transpose(2, 3, 1, 0), atol=1e-4
    )


def test_fresh_weights_are_drawn_as_the_authors_draw_them():
    params = jax.jit(Network(lambda rngs: UnetGenerator(6, 16, rngs=rngs)).init)(jax.random.key(0))
    kernels = np.concatenate([np.ravel(p) for path, p in params.items() if path.endswith("kernel")])
    scales = np.concatenate([np.ravel(p) for path, p in params.items() if path.endswith("scale")])
    assert abs(kernels.mean()) < 1e-4 and kernels.std() == pytest.approx(0.02, rel=1e-2)
    assert scales.mean() == pytest.approx(1.0, abs=3e-3) and scales.std() == pytest.approx(
        0.02, rel=0.1
    )
    assert all(not np.any(p) for path, p in params.items() if path.endswith("bias"))
