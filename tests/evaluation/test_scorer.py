"""The metric step against references that score one picture at a time.

The numbers are the same on any mesh and in batches of any size.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics
from skimage import metrics as skimage

from cranio_jax import models, pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.evaluation.scorer import Scorer
from cranio_jax.metrics.accumulators import ByPlace, Moments
from cranio_jax.metrics.distributions import frechet_distance, frechet_distance_of_rows
from cranio_jax.metrics.features import Features, find_weights
from cranio_jax.models import alignment
from cranio_jax.models.functional import Network

SETTINGS = {"network": "iresnet18", "channels": 8, "height": 32, "width": 32}
CROP = (0.1, 0.2, 0.7, 0.6)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with random weights of SqueezeNet, its heads, and one of our embedders."""
    folder = tmp_path_factory.mktemp("weights")
    lpips = Network(lambda rngs: models.LPIPS("squeeze", rngs=rngs))
    params = jax.jit(lpips.init)(jax.random.key(3))
    for name, prefix in (("trunk", "features."), ("heads", "lin")):
        part = {
            path: abs(value) if prefix == "lin" else value
            for path, value in params.items()
            if path.startswith(prefix)
        }
        pretrained.save(folder / name, "", pretrained.tensors_of(part), "float32")
        (folder / name / "diffusion_pytorch_model.safetensors").rename(
            folder / f"{name}.safetensors"
        )
    embedder = Network(models.make_embedder(SETTINGS))
    pretrained.save_embedder(
        folder / "embedder.safetensors",
        jax.jit(embedder.init)(jax.random.key(4)),
        SETTINGS,
        CROP,
        seed=4,
    )
    return folder


@pytest.fixture(scope="module")
def examples():
    """21 true faces, two other kinds of faces for each, and the masks of the head."""
    rng = np.random.default_rng(0)

    def smooth():
        return np.clip(128 + 20 * np.cumsum(rng.standard_normal((64, 48, 3)), 0), 0, 255)

    found = []
    for i in range(21):
        face = smooth()
        others = [
            np.clip(face + noise * rng.standard_normal(face.shape), 0, 255) for noise in (10, 40)
        ]
        mask = np.zeros((64, 48, 1), np.uint8)
        mask[10:50, 8:40] = 255
        found.append(
            {"id": str(i), "face": np.uint8(face), "generated": np.uint8(others), "head_mask": mask}
        )
    return found


def scored(weights, examples, mesh, batch_size):
    features = Features(f"{weights}/*.safetensors", (0, 0, 1, 1))
    scorer = Scorer(features, mesh, ("near", "far"), (64, 48), len(examples), 2, masked=True)
    return scorer.run(examples, batch_size, None)


@pytest.fixture(scope="module")
def once(weights, examples):
    return scored(weights, examples, sharding.make_mesh(1, 1), 21)


def test_pairs_are_what_references_say(weights, examples, once):
    assert list(once[1]) == ["near", "far"]
    network = Network(lambda rngs: models.LPIPS("squeeze", rngs=rngs))
    params = Features(
        f"{weights}/trunk.safetensors, {weights}/heads.safetensors", (0, 0, 1, 1)
    ).load(sharding.make_mesh(1, 1))["squeeze"]
    lpips = jax.jit(lambda a, b: network.bind(params)(a, b))
    for k, scores in enumerate(once[1].values()):
        assert list(scores.pairs) == [
            "psnr",
            "psnr/head",
            "ssim",
            "ssim/head",
            "lpips/squeeze (unpublished heads)",
            "identity/iresnet18",
        ]
        for i, e in enumerate(examples):
            a, b = e["generated"][k], e["face"]
            assert scores.pairs["psnr"][i] == pytest.approx(
                skimage.peak_signal_noise_ratio(b, a), rel=1e-5
            )
            inside = skimage.peak_signal_noise_ratio(b[10:50, 8:40], a[10:50, 8:40])
            assert scores.pairs["psnr/head"][i] == pytest.approx(inside, rel=1e-5)
        a, b = (
            np.stack([e[n] if n == "face" else e[n][k] for e in examples]) / np.float32(127.5) - 1
            for n in ("generated", "face")
        )
        np.testing.assert_allclose(
            scores.pairs["lpips/squeeze (unpublished heads)"], lpips(a, b), rtol=1e-4
        )
        x, y = scores.rows["identity/iresnet18"], once[0].rows["identity/iresnet18"]
        cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        np.testing.assert_allclose(scores.pairs["identity/iresnet18"], cosines, rtol=1e-5)
        mean, covariance = scores.sets["squeeze"].mean, scores.sets["squeeze"].covariance
        np.testing.assert_allclose(mean, scores.rows["squeeze"].mean(0), rtol=1e-5)
        np.testing.assert_allclose(
            covariance,
            np.cov(scores.rows["squeeze"], rowvar=False),
            atol=1e-5 * np.abs(covariance).max(),
        )
    near, far = (np.mean(s.pairs["lpips/squeeze (unpublished heads)"]) for s in once[1].values())
    assert near < far


def test_an_embedder_of_our_own_sees_what_it_was_trained_to(weights, examples, once):
    embedder = pretrained.open_embedder(weights / "embedder.safetensors")
    assert (embedder.settings, embedder.crop, embedder.seed, embedder.name) == (
        SETTINGS,
        CROP,
        4,
        "identity/iresnet18",
    )
    network = embedder.network()
    params = jax.jit(network.init)(jax.random.key(4))
    faces = np.stack([e["face"] for e in examples]) / np.float32(127.5) - 1
    wanted = jax.jit(lambda x: network.bind(params)(alignment.crop_face(x, CROP, 32, 32)))(faces)
    np.testing.assert_allclose(once[0].rows["identity/iresnet18"], wanted, rtol=1e-4, atol=1e-5)


def numbers(truth_and_kinds):
    """Returns all arrays of the scores."""
    truth, kinds = truth_and_kinds
    return [
        (scores.pairs, scores.rows, [(s.mean, s.covariance) for s in scores.sets.values()])
        for scores in (truth, *kinds.values())
    ]


@pytest.mark.eight_devices
@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (8, 16)])
def test_batches_and_devices_do_not_count(weights, examples, once, devices, batch_size):
    again = scored(weights, examples, sharding.make_mesh(devices, 1), batch_size)

    def close(a, b):
        return np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())

    jax.tree.map(close, numbers(again), numbers(once))
    a, b = (
        frechet_distance_of_rows(s[1]["far"].rows["squeeze"], s[0].rows["squeeze"])
        for s in (again, once)
    )
    assert a == pytest.approx(b, rel=1e-5)
    far, truth = again[1]["far"].sets["squeeze"], again[0].sets["squeeze"]
    moments = (far.mean, far.covariance), (truth.mean, truth.covariance)
    assert frechet_distance(*moments) == pytest.approx(b, rel=1e-3)


def test_fused_and_kept_faces_score_alike(weights, examples, once):
    features = Features(f"{weights}/*.safetensors", (0, 0, 1, 1))

    def offset(given, batch):
        return (
            jnp.moveaxis(batch["generated"], 1, 0)[:1] + given,
            jnp.ones((1, 7), bool),
        )

    scorer = Scorer(
        features,
        sharding.make_mesh(1, 1),
        ("fresh", "near", "far"),
        (64, 48),
        21,
        2,
        masked=True,
        generate=offset,
    )
    scores = scorer.run(examples, 7, None, np.uint8(0))[1]
    for name, values in once[1]["near"].pairs.items():
        np.testing.assert_allclose(scores["fresh"].pairs[name], values, rtol=1e-5)

    def broken(given, batch):
        return (batch["generated"][:, 0][None], (jnp.arange(7) != 3)[None])

    scorer = Scorer(
        features,
        sharding.make_mesh(1, 1),
        ("fresh", "near", "far"),
        (64, 48),
        21,
        2,
        masked=True,
        generate=broken,
    )
    with pytest.raises(
        InputError, match="the face generated for 3 holds values that are not numbers"
    ):
        scorer.run(examples, 7, None, np.uint8(0))


def test_metrics_fit_a_collection_of_clu():
    features, mask = (
        np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32),
        np.float32([[1, 1, 1, 1], [1, 1, 0, 0]]),
    )
    kinds = clu_metrics.Collection.create(
        moments=Moments.of("x", 5),
        rows=ByPlace.of("x", 6, 5),
        mean=clu_metrics.Average.from_output("loss"),
    )
    step = jax.jit(lambda total, **kw: total.merge(kinds.single_from_model_output(**kw)))
    total = jax.jit(kinds.empty)()
    for i in range(2):
        place = np.minimum(np.arange(4 * i, 4 * i + 4), 5)
        total = step(total, x=features[i], mask=mask[i], place=place, loss=features[i][:, 0])
    got, wanted = total.compute(), features.reshape(8, 5)[:6]
    np.testing.assert_array_equal(got["rows"], wanted)
    np.testing.assert_allclose(got["moments"][1], np.cov(wanted, rowvar=False), atol=1e-6)
    assert got["mean"] == pytest.approx(wanted[:, 0].mean(), abs=1e-6)


def test_weights_that_are_none(weights, tmp_path):
    with pytest.raises(InputError, match=r"evaluate.weights: .*nothing\*.pth: no such file"):
        find_weights(f"{weights}/trunk.safetensors,{tmp_path}/nothing*.pth")
    (tmp_path / "twin.safetensors").write_bytes((weights / "trunk.safetensors").read_bytes())
    with pytest.raises(
        InputError,
        match="twin.safetensors is a second file of the trunk squeeze of LPIPS; name one",
    ):
        Features(f"{weights}/trunk.safetensors,{tmp_path}/twin.safetensors", (0, 0, 1, 1))
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"cut short")
    with pytest.raises(InputError, match="vgg16-397923af.pth: the content's SHA-256 begins with"):
        Features(f"{tmp_path}/*.pth", (0, 0, 1, 1))
    with pytest.raises(InputError, match="evaluate.crop=.* is not"):
        Features("", (0.5, 0.5, 1.0, 1.0))
    with pytest.raises(
        InputError,
        match="trunk.safetensors is the trunk squeeze of LPIPS, not an embedder of faces",
    ):
        pretrained.open_embedder(weights / "trunk.safetensors")


def test_a_trunk_without_heads_has_a_name_of_its_own(weights, examples):
    features = Features(f"{weights}/trunk.safetensors", (0, 0, 1, 1))
    assert features.distributions == {"squeeze": 512} and not features.heads
    assert list(features.pair_metrics(64, 48, False)) == ["psnr", "ssim"]
    scores = Scorer(features, sharding.make_mesh(1, 1), ("near", "far"), (64, 48), 21, 2).run(
        examples, 21, None
    )[1]
    assert scores["near"].sets["squeeze"].mean.shape == (512,)


def test_networks_are_asked_for_full_precision(weights, examples):
    """All products of the feature networks request the highest precision.

    Otherwise accelerators multiply in TF32 or bfloat16. A CPU ignores the setting.
    """
    features = Features(f"{weights}/*.safetensors", (0, 0, 1, 1))
    params, faces = features.load(sharding.make_mesh(1, 1)), np.stack([e["face"] for e in examples])

    def all_of(params, faces):
        found = features.describe(params, faces)
        return features.embed(params, faces), features.compare(params, found, found, faces, faces)

    asked = [
        eqn.params["precision"]
        for eqn in _equations(jax.make_jaxpr(all_of)(params, faces).jaxpr)
        if "precision" in eqn.params
    ]
    highest = jax.lax.Precision.HIGHEST
    assert len(asked) > 50 and set(asked) == {(highest, highest)}


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(
            [getattr(p, "jaxpr", p) for p in eqn.params.values()],
            is_leaf=lambda p: hasattr(p, "eqns"),
        ):
            if hasattr(inner, "eqns"):
                yield from _equations(inner)
