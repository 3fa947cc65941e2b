"""Feature networks with real weights, against values of their PyTorch originals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from cranio_jax import pretrained
from cranio_jax.errors import InputError
from cranio_jax.models.arcface import EMBEDDERS
from cranio_jax.models.functional import Network
from cranio_jax.models.lpips import LEAST_SIDES, LPIPS, MaxPool
from cranio_jax.pretrained.names import from_torch, torch_key
from tests.models.torch_iresnet import iresnet


def network_with(make, *files):
    """Returns a network and its parameters from files.

    Each file is `(path, prefix to drop, prefix to keep)`.
    """
    network = Network(make)
    shapes, params = network.shapes(), {}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for path, prefix in files:
        with pretrained.open_weights(path) as tensors:
            own = {
                key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)
            }
            some, own = pretrained.pick(shapes, own)
            params |= pretrained.load(some, own, dict.fromkeys(some, here), path.name)
    return network, params


def test_mobilefacenet_embeds_as_its_original(shared_data):
    golden = np.load(shared_data / "weights" / "mobilefacenet_golden.npz")
    network, params = network_with(
        lambda rngs: EMBEDDERS["mobilefacenet"](rngs=rngs),
        (shared_data / "weights" / "mobilefacenet_arcface.safetensors", ""),
    )
    faces = golden["images_uint8"].astype(np.float32) / 127.5 - 1.0
    got = np.asarray(jax.jit(lambda p, x: network.bind(p)(x))(params, faces))
    assert np.linalg.norm(got - golden["embeddings"]) < 1e-3 * np.linalg.norm(golden["embeddings"])


def test_lpips_squeeze_is_the_packages(shared_data):
    golden = np.load(shared_data / "weights" / "lpips_squeeze_golden.npz")
    files = (
        (shared_data / "weights" / "squeezenet1_1.safetensors", ""),
        (shared_data / "weights" / "lpips_v0.1_linear.safetensors", "squeeze."),
    )
    network, params = network_with(lambda rngs: LPIPS("squeeze", rngs=rngs), *files)
    a, b = (golden[name].astype(np.float32) / 127.5 - 1.0 for name in ("a_uint8", "b_uint8"))
    distance = jax.jit(lambda p, a, b: network.bind(p)(a, b))
    np.testing.assert_allclose(distance(params, a, b), golden["lpips"], rtol=1e-3)
    np.testing.assert_allclose(distance(params, a, a), 0.0, atol=1e-12)
    slope = jax.grad(lambda a: distance(params, a, a).sum())(a)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("trunk", ["vgg", "alex"])
def test_lpips_takes_the_published_heads(shared_data, trunk):
    path = shared_data / "weights" / "lpips_v0.1_linear.safetensors"
    network, params = network_with(lambda rngs: LPIPS(trunk, rngs=rngs), (path, trunk + "."))
    assert {name for name in network.shapes() if name.startswith("lin")} == set(params)


@pytest.mark.parametrize(("name", "published"), [("iresnet50", 43.59e6), ("iresnet100", 65.16e6)])
def test_iresnets_have_the_published_size(name, published):
    shapes = Network(lambda rngs: EMBEDDERS[name](rngs=rngs)).shapes()
    learned = sum(
        np.prod(shape) for path, shape in shapes.items() if not path.endswith((".mean", ".var"))
    )
    assert learned == pytest.approx(published, abs=5e3)


@pytest.mark.parametrize(
    ("trunk", "published"), [("vgg", 14_714_688), ("alex", 2_469_696), ("squeeze", 722_496)]
)
def test_trunks_have_torchvisions_size(trunk, published):
    shapes = Network(lambda rngs: LPIPS(trunk, rngs=rngs)).shapes()
    assert (
        sum(np.prod(shape) for path, shape in shapes.items() if path.startswith("features"))
        == published
    )


def torch_trunk(name):
    """Returns `(layers, taps)` in torchvision's layout."""
    relu, layers = lambda: nn.ReLU(), []
    if name == "vgg":
        channels = 3
        for width in [
            64,
            64,
            "M",
            128,
            128,
            "M",
            256,
            256,
            256,
            "M",
            512,
            512,
            512,
            "M",
            512,
            512,
            512,
        ]:
            layers += (
                [nn.MaxPool2d(2, 2)]
                if width == "M"
                else [nn.Conv2d(channels, width, 3, padding=1), relu()]
            )
            channels = channels if width == "M" else width
        return nn.Sequential(*layers), (3, 8, 15, 22, 29)
    layers = [
        nn.Conv2d(3, 64, 11, 4, 2),
        relu(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        relu(),
        nn.MaxPool2d(3, 2),
    ]
    layers += [
        nn.Conv2d(192, 384, 3, padding=1),
        relu(),
        nn.Conv2d(384, 256, 3, padding=1),
        relu(),
        nn.Conv2d(256, 256, 3, padding=1),
        relu(),
    ]
    return nn.Sequential(*layers), (1, 4, 7, 9, 11)


@pytest.mark.parametrize(
    ("trunk", "size"),
    [("vgg", (67, 75)), ("vgg", (16, 19)), ("alex", (67, 75)), ("alex", (38, 31))],
)
def test_lpips_is_torchs(trunk, size):
    torch.manual_seed(0)
    layers, taps = torch_trunk(trunk)
    network = Network(lambda rngs: LPIPS(trunk, rngs=rngs))
    rng, state = (
        np.random.default_rng(0),
        {f"features.{k}": v.numpy() for k, v in layers.state_dict().items()},
    )
    heads = {
        torch_key(p): rng.uniform(0, 1, (1, shape[2], 1, 1)).astype(np.float32)
        for p, shape in network.shapes().items()
        if "lin" in p
    }
    params = {path: from_torch(path, (state | heads)[torch_key(path)]) for path in network.shapes()}
    a, b = (
        rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32) for _ in range(2)
    )  # odd sides: pooling must crop in the same way

    def describe(picture):
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        hidden, found = ((torch.from_numpy(picture) - shift) / scale).permute(0, 3, 1, 2), []
        for i, layer in enumerate(layers):
            hidden = layer(hidden)
            if i in taps:
                found.append(nn.functional.normalize(hidden, dim=1))
        return found

    with torch.no_grad():
        parts = zip(describe(a), describe(b), sorted(heads), strict=True)
        wanted = sum(
            (((x - y) ** 2) * torch.from_numpy(heads[key])).sum(1).mean((1, 2))
            for x, y, key in parts
        ).numpy()
    np.testing.assert_allclose(
        jax.jit(lambda p, a, b: network.bind(p)(a, b))(params, a, b), wanted, rtol=1e-4
    )


def test_lpips_needs_as_much_as_torch():
    """LPIPS needs the same least picture size as torch.

    Below it torch fails, and our mean would be over no values.
    """
    for side in range(2, 9):
        x = np.random.default_rng(0).standard_normal((1, side, side + 3, 2)).astype(np.float32)
        wanted = nn.MaxPool2d(3, 2, ceil_mode=True)(torch.from_numpy(x).permute(0, 3, 1, 2))
        got = MaxPool(3, ceil=True)(x)
        np.testing.assert_array_equal(got, wanted.permute(0, 2, 3, 1))
    for trunk, side in LEAST_SIDES.items():
        network = Network(lambda rngs, trunk=trunk: LPIPS(trunk, rngs=rngs))
        params = {
            path: jax.ShapeDtypeStruct(shape, jnp.float32)
            for path, shape in network.shapes().items()
        }

        def picture(side):
            return jax.ShapeDtypeStruct((1, side, side + 9, 3), jnp.float32)

        def describe(params, x):
            return network.bind(params).describe(x)  # noqa: B023

        assert all(
            np.prod(tap.shape) > 0 for tap in jax.eval_shape(describe, params, picture(side))
        )
        words = (
            f"trunk {trunk} needs pictures of at least {side} x {side} pixels, not {side - 1} x"
            f" {side + 8}"
        )
        with pytest.raises(InputError, match=words):
            jax.eval_shape(describe, params, picture(side - 1))
    for trunk, pools in {
        "vgg": [nn.MaxPool2d(2)] * 4,
        "alex": [nn.Conv2d(1, 1, 11, 4, 2)] + [nn.MaxPool2d(3, 2)] * 2,
        "squeeze": [nn.Conv2d(1, 1, 3, 2)] + [nn.MaxPool2d(3, 2, ceil_mode=True)] * 3,
    }.items():
        nn.Sequential(*pools)(torch.zeros(1, 1, LEAST_SIDES[trunk], 40))
        with pytest.raises(RuntimeError, match="too small"):
            nn.Sequential(*pools)(torch.zeros(1, 1, LEAST_SIDES[trunk] - 1, 40))


def test_iresnet_is_torchs():
    model = iresnet((3, 4, 14, 3))
    face = np.random.default_rng(0).uniform(-1, 1, (2, 112, 112, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(face).permute(0, 3, 1, 2)).numpy()
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    network = Network(lambda rngs: EMBEDDERS["iresnet50"](rngs=rngs))
    params = {
        path: jnp.asarray(from_torch(path, state[torch_key(path)])) for path in network.shapes()
    }
    got = jax.jit(lambda p, x: network.bind(p)(x))(params, face)
    assert np.linalg.norm(got - wanted) < 1e-4 * np.linalg.norm(wanted - wanted.mean(0))
