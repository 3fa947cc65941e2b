"""The decoded loss terms: closed forms and gradients against finite differences.

A term with weight 0 must not change the method.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage import transform

from cranio_jax import models, pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.methods.cranio_diff import losses as decoded
from cranio_jax.models import alignment
from cranio_jax.models.functional import Network

TERMS = ("lpips", "identity")


def test_gates():
    t = jnp.array([0, 199, 200, 500, 999])

    def gate(name):
        return np.asarray(decoded.timestep_gate(t, 1000, name, 200))

    np.testing.assert_array_equal(gate("none"), 1.0)
    np.testing.assert_array_equal(gate("below"), [1, 1, 0, 0, 0])
    np.testing.assert_allclose(
        gate("quadratic"), (1 - np.array([0, 199, 200, 500, 999]) / 1000) ** 2, atol=1e-6
    )


def test_cosine_and_mean():
    a, b = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 7)), jnp.float32)
    cosine = (a * b).sum(-1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(alignment.cosine_distance(a, b), 1 - cosine, rtol=1e-5)
    assert decoded.weighted_mean(jnp.array([2.0, 4.0, 9.0]), jnp.array([1.0, 0.5, 0.0])) == 2.0
    assert decoded.weighted_mean(jnp.ones(3), jnp.zeros(3)) == 0.0


def test_crop_is_where_it_says():
    picture = np.full((1, 20, 40, 3), -1.0, np.float32)
    picture[:, 5:15, 10:30] = np.linspace(0, 1, 20, dtype=np.float32)[None, None, :, None]
    crop = np.asarray(alignment.crop_face(jnp.asarray(picture), (0.25, 0.25, 0.5, 0.5), 5, 10))
    assert crop.shape == (1, 5, 10, 3) and crop.min() >= 0.0
    assert np.all(np.diff(crop[0, 2, :, 0]) > 0)


@pytest.mark.parametrize("height,width", [(112, 112), (112, 96)])
def test_alignment_against_an_independent_fit_and_warp(height, width):
    rng = np.random.default_rng(0)
    faces = np.float32(
        ndimage.gaussian_filter(rng.uniform(-1, 1, (2, 200, 160, 3)), (0, 4, 4, 0)) * 8
    )

    def turn(degrees):
        return np.array([[np.cos(degrees), -np.sin(degrees)], [np.sin(degrees), np.cos(degrees)]])

    places = [
        (alignment.TEMPLATE - 56) @ turn(angle) * size + [80, 100] + rng.normal(0, 2, (5, 2))
        for angle, size in ((0.3, 1.2), (-0.2, 0.7))
    ]
    got = alignment.align_face(jnp.asarray(faces), jnp.asarray(places, jnp.float32), height, width)
    for i in range(2):
        fit = transform.SimilarityTransform.from_estimate(
            places[i], alignment.TEMPLATE - np.array([(112 - width) / 2, 0])
        )
        wanted = transform.warp(
            faces[i],
            fit.inverse,
            output_shape=(height, width),
            order=1,
            cval=-1.0,
            clip=False,
            preserve_range=True,
        )
        np.testing.assert_allclose(got[i], wanted, atol=2e-3)


def test_faces_without_landmarks_get_the_fixed_crop():
    faces = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)), jnp.float32)
    landmarks = jnp.stack([jnp.asarray(alignment.TEMPLATE) / 2, jnp.full((5, 2), jnp.nan)])
    crop = (0.2, 0.2, 0.65, 0.6)
    got = alignment.embedder_input(faces, landmarks, crop, 112, 96)
    fixed = alignment.crop_face(faces, crop, 112, 96)
    np.testing.assert_array_equal(got[1], fixed[1])
    assert jnp.abs(got[0] - fixed[0]).max() > 0.1
    np.testing.assert_array_equal(alignment.embedder_input(faces, None, crop, 112, 96), fixed)
    slope = jax.grad(
        lambda faces: (alignment.embedder_input(faces, landmarks, crop, 112, 96) ** 2).sum()
    )(faces)
    assert jnp.isfinite(slope).all() and (jnp.abs(slope).max((1, 2, 3)) > 0).all()


@pytest.fixture
def with_terms(config, tmp_path):
    """Returns a function `weights -> (method, frozen)`.

    The patch codec, SqueezeNet and MobileFaceNet have random weights.
    """
    networks = {
        "trunk_file": (Network(lambda rngs: models.LPIPS("squeeze", rngs=rngs)), "features."),
        "heads_file": (Network(lambda rngs: models.LPIPS("squeeze", rngs=rngs)), "lin"),
        "embedder_file": (Network(lambda rngs: models.EMBEDDERS["mobilefacenet"](rngs=rngs)), ""),
    }
    for field, (network, prefix) in networks.items():
        params = jax.jit(network.init)(jax.random.key(1))
        params = {
            path: abs(value) if "lin" in path else value
            for path, value in params.items()
            if path.startswith(prefix)
        }
        pretrained.save(tmp_path / field, "features", pretrained.tensors_of(params), "float32")
        config.method.losses[field] = str(tmp_path / field / "diffusion_pytorch_model.safetensors")
    config.method.losses.update(trunk="squeeze")
    # The networks of the loss alone are frozen.
    config.method.trained = ("controlnet", "unet", "text_encoder")

    def make(**changes):
        config.method.losses.update(changes)
        method = make_method(config)
        return method, method.load(sharding.make_mesh(1, 1), frozen_only=True)

    return make


def drawn(method, frozen):
    """Returns parameters to train."""
    return jax.jit(method.init)(jax.random.key(0), frozen)[0]["params"]


def in_float32(draws):
    """Returns draws with single precision in place of double."""
    return {
        name: value.astype(np.float32) if value.dtype == np.float64 else value
        for name, value in draws.items()
    }


def inputs(method, count=4):
    """Returns a batch of noise and its random draws, in double precision."""
    rng, size, side = np.random.default_rng(0), method.size, method.size // method.factor
    batch = {
        "xray": rng.integers(0, 256, (count, size, size, 1), dtype=np.uint8),
        "face": rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        "prompt_ids": rng.integers(0, 60, (count, 16), dtype=np.int32),
        "frontal": np.array([1, 0] * (count // 2), np.float32),
    }
    draws = {
        "timesteps": np.array([50, 400, 150, 700])[:count],
        "noise": rng.standard_normal((count, side, side, method.channels)),
        "drop_prompt": np.zeros(count, bool),
        "decoded": np.ones(count),
    }
    return jax.tree.map(jnp.asarray, (batch, draws))


@pytest.mark.parametrize("term", TERMS)
def test_slopes_are_right(config, with_terms, term):
    """The derivative along a random direction agrees with finite differences."""
    with jax.enable_x64(True):
        config.compute_dtype = "float64"
        method, params = with_terms(**{term: 0.2})
        batch, draws = inputs(method)
        latents, direction = np.random.default_rng(2).standard_normal((2, *draws["noise"].shape))

        @jax.jit
        def value(latents):
            return decoded.decoded_terms(method, params, batch, latents, draws["timesteps"])[term]

        slope = jax.grad(value)(jnp.asarray(latents))
        assert slope.dtype == jnp.float64 and (jnp.abs(slope) > 0).mean() > 0.1
        h = 1e-8  # small, because a larger step crosses kinks of piecewise linear parts
        wanted = (value(latents + h * direction) - value(latents - h * direction)) / (2 * h)
        assert float((slope * direction).sum()) == pytest.approx(float(wanted), rel=1e-3)


def test_terms_reach_the_controlnet(with_terms):
    method, frozen = with_terms(lpips=0.2, identity=0.2)
    params = drawn(method, frozen)
    batch, draws = inputs(method)
    draws = in_float32(draws)
    # Zero convolutions would block the gradients to the rest of the ControlNet.
    rng = np.random.default_rng(2)
    control = {
        path: value + 0.05 * rng.standard_normal(value.shape, np.float32)
        for path, value in params["controlnet"].items()
    }

    @jax.jit
    @jax.jacrev
    def slopes(control):
        terms = method.loss(params | {"controlnet": control}, frozen, batch, draws)[1]
        return [terms[name] for name in TERMS]

    for slope in slopes(control):
        reached = [float(jnp.abs(value).max()) > 0 for value in slope.values()]
        assert sum(reached) > 0.9 * len(reached)


def test_total_is_the_weighted_sum(with_terms):
    method, frozen = with_terms(lpips=0.2, identity=0.3)
    params = drawn(method, frozen)
    batch, draws = inputs(method)
    draws = in_float32(draws)
    loss = jax.jit(method.loss)
    total, metrics = loss(params, frozen, batch, draws)
    plain, without = loss(params, frozen, batch, draws | {"decoded": np.zeros(4, np.float32)})
    assert (
        metrics["lpips"] > 0
        and metrics["identity"] > 0
        and without["lpips"] == without["identity"] == 0
    )
    np.testing.assert_allclose(
        total, plain + 0.2 * metrics["lpips"] + 0.3 * metrics["identity"], rtol=1e-5
    )
    # The identity term ignores lateral faces.
    changed = batch["face"].at[batch["frontal"] == 0].set(0)
    other = loss(params, frozen, batch | {"face": changed}, draws)[1]
    assert other["lpips"] != metrics["lpips"]
    np.testing.assert_allclose(other["identity"], metrics["identity"], rtol=1e-5)


def test_logged_steps_have_the_terms(config, with_terms):
    config.train.log_every = 4
    method, _ = with_terms(identity=0.2, every=2)
    strength = [
        float(method._draw(step, 1, jax.random.key(0))["decoded"][0]) for step in jnp.arange(8)
    ]
    assert strength == [0, 1, 0, 1, 0, 1, 0, 1]  # step 3, counted from 0, is the fourth
    with pytest.raises(InputError, match="train.log_every=4.*method.losses.every=3"):
        with_terms(every=3)


def test_a_weight_of_zero_leaves_nothing_in_the_step(with_terms):
    def convolutions(**weights):
        method, frozen = with_terms(**weights)
        state, frozen = jax.eval_shape(method.init, jax.random.key(0), frozen)
        batch, _ = inputs(method)
        text = jax.jit(method.train_step).lower(state, frozen, batch, jax.random.key(0)).as_text()
        return text.count("stablehlo.convolution"), "stablehlo.case" in text, set(frozen)

    none = convolutions(lpips=0.0, identity=0.0)
    one = convolutions(lpips=0.2, identity=0.0)
    both = convolutions(lpips=0.2, identity=0.2)
    assert none[0] < one[0] < both[0]
    assert (none[1], one[1]) == (False, True)
    assert (none[2], one[2], both[2]) == (set(), {"lpips"}, {"lpips", "embedder"})


def test_pictures_too_small_for_a_term(config):
    def refused(size, words, **changes):
        config.data.settings.size = size
        config.method.losses.update(changes)
        with pytest.raises(InputError, match=words):
            make_method(config)

    small = "LPIPS with the trunk {0} needs pictures of at least {1} x {1} pixels, not {2} x {2}"
    refused(8, small.format("vgg", 16, 8), lpips=0.2)
    refused(28, small.format("alex", 31, 28), trunk="alex")
    refused(16, "method.losses.trunk_file is empty", trunk="vgg")  # large enough
    config.method.losses.lpips = 0.0
    make_method(config)
    crop = (0.2, 0.2, 0.65, 0.6)
    assert alignment.crop_face(jnp.ones((1, 1, 1, 3)), crop, 4, 4).shape == (1, 4, 4, 3)
    with pytest.raises(InputError, match="which is less than a pixel of 1 x 3"):
        alignment.crop_face(jnp.ones((1, 1, 3, 3)), (0.2, 0.2, 0.4, 0.6), 4, 4)


def test_bad_settings_are_named(config):
    for changes, message in (
        (dict(lpips=0.2), "method.losses.trunk_file is empty"),
        (dict(identity=0.2), "method.losses.embedder_file is empty"),
        (dict(gate="soft"), "method.losses.gate='soft': it is unknown"),
        (dict(crop=(0.5, 0.0, 0.8, 1.0)), "is not .top, left, height, width. within the picture"),
        (dict(every=0), "method.losses.every=0"),
        (
            dict(lpips=0.1, trunk="resnet"),
            "method.losses.trunk='resnet': it is unknown. Use one of vgg, alex, squeeze",
        ),
    ):
        changed = config.copy_and_resolve_references()
        changed.method.losses.update(changes)
        with pytest.raises(InputError, match=message):
            make_method(changed)
