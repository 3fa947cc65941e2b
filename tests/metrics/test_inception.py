"""The FID's Inception and what is made of its features, against torch-fidelity with the same random weights."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cranio_jax import pretrained
from cranio_jax.metrics import distributions
from cranio_jax.models import FIDInception
from cranio_jax.models.functional import Network
from cranio_jax.pretrained.names import torch_key, torch_shape


@pytest.fixture(scope="module")
def networks(fidelity, tmp_path_factory):
    """`(ours, parameters, torch-fidelity's)`, both from one file."""
    network, rng, state = Network(lambda rngs: FIDInception(rngs=rngs)), np.random.default_rng(0), {}
    for path, shape in network.shapes().items():
        shape = torch_shape(path, shape)
        value = (
            rng.standard_normal(shape) * (2.0 / max(np.prod(shape[1:]), 1)) ** 0.5 if len(shape) > 1 else 0.1 * rng.standard_normal(shape)
        )
        state[torch_key(path)] = torch.from_numpy(np.float32(abs(value) + 0.8 if "scale" in path or "var" in path else value))
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, file)
    theirs = fidelity.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)).eval()
    here = dict.fromkeys(network.shapes(), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    with pretrained.open_weights(file) as tensors:
        return network, pretrained.load(network.shapes(), tensors, here, file.name), theirs


@pytest.mark.parametrize("side", [(64, 64), (333, 310)])
def test_features_and_logits(networks, side):
    network, params, theirs = networks
    pictures = np.random.default_rng(1).integers(0, 256, (2, *side, 3), dtype=np.uint8)
    pictures[1] = np.linspace(0, 255, side[1])[:, None]
    got = jax.jit(lambda p, x: network.bind(p)(x))(params, pictures)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(pictures.transpose(0, 3, 1, 2)))
    for ours, other in zip(got, wanted, strict=True):
        other = other.numpy()
        assert np.linalg.norm(other[0] - other[1]) > 0.05 * np.linalg.norm(other)
        assert np.linalg.norm(ours - other) < 1e-4 * np.linalg.norm(other)


@pytest.mark.parametrize("count", [2048, 64])  # of 64 images the covariance is singular
def test_distances_of_features(fidelity, count):
    module = lambda name: importlib.import_module(f"torch_fidelity.metric_{name}")
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((256, 256)) / 16
    a, b = ((rng.gamma(1.0, size=(count, 256)) + shift) @ mix for shift in (0.0, 0.1))
    a, b = a.astype(np.float32), b.astype(np.float32)
    stats = lambda x: module("fid").fid_features_to_statistics(torch.from_numpy(x))
    wanted = module("fid").fid_statistics_to_metric(stats(a), stats(b), False)["frechet_inception_distance"]
    total = lambda x: distributions.Moments.from_model_output(jnp.asarray(x), jnp.ones(len(x))).compute()
    assert distributions.frechet_distance(total(a), total(b)) == pytest.approx(wanted, rel=1e-3)

    options = dict(kid_subsets=2, kid_subset_size=count, kid_degree=3, kid_gamma=None, kid_coef0=1, rng_seed=0, verbose=False)
    wanted = module("kid").kid_features_to_metric(torch.from_numpy(a).double(), torch.from_numpy(b).double(), **options)
    got, _ = distributions.kernel_distance(a, b, count, 2, seed=0)
    assert got == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-3, abs=1e-9)

    logits = a[:, :100] * 3
    wanted = module("isc").isc_features_to_metric(torch.from_numpy(logits), splits=4, shuffle=False)
    split = np.arange(count) * 4 // count
    got = distributions.InceptionScore.empty(4, 100).add(jnp.asarray(logits), split, jnp.ones(count)).compute()
    np.testing.assert_allclose(got, list(wanted.values()), rtol=1e-4)
