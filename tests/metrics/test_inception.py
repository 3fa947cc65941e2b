"""The Inception network of the FID and the metrics of its features, against torch-fidelity.

Both use the same random weights.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from cranio_jax import pretrained
from cranio_jax.metrics import accumulators, distributions
from cranio_jax.models import FIDInception
from cranio_jax.models.functional import Network
from cranio_jax.pretrained.names import torch_key, torch_shape
from tests.evaluated import evaluated


@pytest.fixture(scope="module")
def networks(fidelity, tmp_path_factory):
    """Returns `(our network, parameters, torch-fidelity's network, weight file of both)`."""
    network, rng, state = (
        Network(lambda rngs: FIDInception(rngs=rngs)),
        np.random.default_rng(0),
        {},
    )
    for path, shape in network.shapes().items():
        shape = torch_shape(path, shape)
        value = (
            rng.standard_normal(shape) * (2.0 / max(np.prod(shape[1:]), 1)) ** 0.5
            if len(shape) > 1
            else 0.1 * rng.standard_normal(shape)
        )
        value = (
            100.0 * value if path.startswith("fc") else value
        )  # so that different pictures get different classes
        state[torch_key(path)] = torch.from_numpy(
            np.float32(abs(value) + 0.8 if "scale" in path or "var" in path else value)
        )
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, file)
    theirs = fidelity.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
    ).eval()
    here = dict.fromkeys(network.shapes(), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    with pretrained.open_weights(file) as tensors:
        return network, pretrained.load(network.shapes(), tensors, here, file.name), theirs, file


@pytest.mark.parametrize("side", [(64, 64), (333, 310)])
def test_features_and_logits(networks, side):
    network, params, theirs, _ = networks
    pictures = np.random.default_rng(1).integers(0, 256, (2, *side, 3), dtype=np.uint8)
    pictures[1] = np.linspace(0, 255, side[1])[:, None]
    got = jax.jit(lambda p, x: network.bind(p)(x))(params, pictures)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(pictures.transpose(0, 3, 1, 2)))
    for ours, other in zip(got, wanted, strict=True):
        other = other.numpy()
        assert np.linalg.norm(other[0] - other[1]) > 0.05 * np.linalg.norm(other)
        assert np.linalg.norm(ours - other) < 1e-4 * np.linalg.norm(other)


@pytest.mark.parametrize("count", [2048, 64])  # with 64 images the covariance is singular
def test_distances_of_features(fidelity, count):
    def module(name):
        return importlib.import_module(f"torch_fidelity.metric_{name}")

    rng = np.random.default_rng(0)
    mix = rng.standard_normal((256, 256)) / 16
    a, b = ((rng.gamma(1.0, size=(count, 256)) + shift) @ mix for shift in (0.0, 0.1))
    a, b = a.astype(np.float32), b.astype(np.float32)

    def stats(x):
        return module("fid").fid_features_to_statistics(torch.from_numpy(x))

    wanted = module("fid").fid_statistics_to_metric(stats(a), stats(b), False)[
        "frechet_inception_distance"
    ]

    def total(x):
        return accumulators.Moments.from_model_output(jnp.asarray(x), jnp.ones(len(x))).compute()

    assert distributions.frechet_distance(total(a), total(b)) == pytest.approx(wanted, rel=1e-3)

    options = dict(
        kid_subsets=2,
        kid_subset_size=count,
        kid_degree=3,
        kid_gamma=None,
        kid_coef0=1,
        rng_seed=0,
        verbose=False,
    )
    wanted = module("kid").kid_features_to_metric(
        torch.from_numpy(a).double(), torch.from_numpy(b).double(), **options
    )
    got, _ = distributions.kernel_distance(a, b, count, 2, seed=0)
    assert got == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-3, abs=1e-9)

    logits = a[:, :100] * 3
    wanted = module("isc").isc_features_to_metric(torch.from_numpy(logits), splits=4, shuffle=False)
    split = jnp.arange(count) * 4 // count
    got = (
        accumulators.InceptionScore.empty(4, 100)
        .add(jnp.asarray(logits), split, jnp.ones(count))
        .compute()
    )
    np.testing.assert_allclose(got, list(wanted.values()), rtol=1e-4)


@pytest.mark.slow
def test_two_folders_score_as_torch_fidelity_scores_them(networks, tmp_path):
    from configs import common

    theirs, file = networks[2:]
    rng, pictures = np.random.default_rng(0), {}
    for name, low in (("made", 0), ("true", 40)):
        pictures[name] = (
            rng.integers(low, 256, (20, 5, 6, 3), np.uint8).repeat(8, 1).repeat(7, 2) // 2 + 30
        ).astype(np.uint8)
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pictures[name]):
            Image.fromarray(picture).save(tmp_path / name / f"{i:02d}.png")
    c = common.get_config()
    c.evaluate.update(
        generated=str(tmp_path / "made"),
        reference=str(tmp_path / "true"),
        weights=str(file),
        batch_size=8,
        bootstrap=10,
    )
    c.evaluate.update(kernel_subset=20, kernel_rounds=2, inception_splits=1)
    c.mesh.data = jax.device_count()
    row = evaluated(c, tmp_path / "w")["rows"]["generated"]

    def module(name):
        return importlib.import_module(f"torch_fidelity.metric_{name}")

    with torch.no_grad():
        found = {
            name: theirs(torch.from_numpy(p.transpose(0, 3, 1, 2).copy()))
            for name, p in pictures.items()
        }
    stats = [module("fid").fid_features_to_statistics(found[name][0]) for name in ("made", "true")]
    wanted = module("fid").fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert row["fid"]["mean"] == pytest.approx(wanted, rel=1e-3)
    options = dict(
        kid_subsets=1,
        kid_subset_size=20,
        kid_degree=3,
        kid_gamma=None,
        kid_coef0=1,
        rng_seed=0,
        verbose=False,
    )
    wanted = module("kid").kid_features_to_metric(
        found["made"][0].double(), found["true"][0].double(), **options
    )
    assert row["kid"]["mean"] == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-3)
    wanted = module("isc").isc_features_to_metric(found["made"][1], splits=1, shuffle=False)[
        "inception_score_mean"
    ]
    assert row["inception score"]["mean"] == pytest.approx(wanted, rel=1e-4) and wanted > 1.01


@pytest.fixture
def odd_folders(tmp_path):
    """Folders of 9 and 7 pictures of several sizes and kinds; seven names happen to agree."""
    rng = np.random.default_rng(0)
    sizes = {"made": [(42, 40), (17, 23), (8, 8)], "true": [(60, 31), (42, 40)]}
    for folder, count in (("made", 9), ("true", 7)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            blocks = Image.fromarray(rng.integers(80 * (count == 7), 256, (3, 4, 3), np.uint8))
            picture = blocks.resize(sizes[folder][i % len(sizes[folder])], Image.NEAREST)
            kind = {1: "L", 2: "RGBA", 3: "P"}.get(i, "RGB")
            picture.convert(kind).save(tmp_path / folder / f"{i}.png")
    return tmp_path


def test_folders_that_do_not_pair_score_as_torch_fidelity_scores_them(networks, odd_folders):
    from configs import common

    theirs, file = networks[2:]
    c, paths = common.get_config(), {name: odd_folders / name for name in ("made", "true")}
    c.evaluate.update(generated=str(paths["made"]), reference=str(paths["true"]), weights=str(file))
    c.evaluate.update(batch_size=5, kernel_subset=7, kernel_rounds=20, inception_splits=1)
    c.mesh.data = 1
    results = evaluated(c, odd_folders / "w")
    row = results["rows"]["generated"]
    assert set(row) == {"fid", "kid", "inception score"}

    # Pictures of different sizes can't be batched: torch-fidelity reads them one by one.
    def described(folder):
        pictures = [np.array(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
        with torch.no_grad():
            each = [theirs(torch.from_numpy(p.transpose(2, 0, 1)[None].copy())) for p in pictures]
        return [torch.cat(parts) for parts in zip(*each, strict=True)]

    (a, logits), (b, _) = (described(folder) for folder in paths.values())
    a, b = a.numpy(), b.numpy()
    wanted = distributions.frechet_distance_of_rows(a, b)
    assert row["fid"]["mean"] == pytest.approx(wanted, rel=1e-3)
    wanted, _ = distributions.kernel_distance(a, b, 7, 20, seed=c.seed)
    assert row["kid"]["mean"] == pytest.approx(wanted, rel=1e-3)
    isc = importlib.import_module("torch_fidelity.metric_isc")
    wanted = isc.isc_features_to_metric(logits, splits=1, shuffle=False)
    assert row["inception score"]["mean"] == pytest.approx(wanted["inception_score_mean"], rel=1e-4)
    assert "7 names are in both folders, of 9 generated and 7 real pictures" in results["unpaired"]
    assert "torch-fidelity" in results["resizing"]
