"""Feature networks with real weights, against values of their PyTorch originals."""

import jax
import numpy as np
import pytest

from cranio_jax import pretrained
from cranio_jax.models.arcface import EMBEDDERS
from cranio_jax.models.functional import Network
from cranio_jax.models.lpips import LPIPS


def network_with(make, *files):
    """A network and its parameters from files, each `(path, prefix to drop, prefix to keep)`."""
    network = Network(make)
    shapes, params = network.shapes(), {}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for path, prefix in files:
        with pretrained.open_weights(path) as tensors:
            own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            some, own = pretrained.pick(shapes, own)
            params |= pretrained.load(some, own, dict.fromkeys(some, here), path.name)
    return network, params


def test_mobilefacenet_embeds_as_its_original(shared_data):
    golden = np.load(shared_data / "weights" / "mobilefacenet_golden.npz")
    network, params = network_with(
        lambda rngs: EMBEDDERS["mobilefacenet"](rngs=rngs), (shared_data / "weights" / "mobilefacenet_arcface.safetensors", "")
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
    learned = sum(np.prod(shape) for path, shape in shapes.items() if not path.endswith((".mean", ".var")))
    assert learned == pytest.approx(published, abs=5e3)


@pytest.mark.parametrize(("trunk", "published"), [("vgg", 14_714_688), ("alex", 2_469_696), ("squeeze", 722_496)])
def test_trunks_have_torchvisions_size(trunk, published):
    shapes = Network(lambda rngs: LPIPS(trunk, rngs=rngs)).shapes()
    assert sum(np.prod(shape) for path, shape in shapes.items() if path.startswith("features")) == published
