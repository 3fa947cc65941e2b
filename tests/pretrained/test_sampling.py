"""The block `sampling`: each setting against diffusers' pipelines, and what is refused."""

import types

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cranio_jax.data.prompts import make_tokenizer
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method

PROMPTS = ["a woman, 45", "a man, 65"]
IDS, KEY = np.array([7, 8], np.uint32), jax.random.key(3)
XRAYS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)


@pytest.fixture(autouse=True)
def single_threaded_torch():
    """These pictures are too small for more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def our_faces(config):
    """`(2, 16, 16, 3)` in 0 to 1, operation by operation: each setting would compile for long."""
    method = make_method(config)
    published = method.load(sharding.make_mesh(1, 1), frozen_only=False)
    state, frozen = method.init(jax.random.key(0), published)
    ids = make_tokenizer(config)(PROMPTS)
    batch = {"xray": jnp.asarray(XRAYS), "id_hash": jnp.asarray(IDS), "prompt_ids": ids}
    with jax.disable_jit():
        return np.asarray(method.generate(state["params"], frozen, batch, KEY)) / 2 + 0.5


def their_faces(pipeline, config, **call):
    """What a diffusers pipeline makes of the same noise with the scheduler that an export names."""
    settings = make_method(config).scheduler_config
    scheduler = getattr(diffusers, settings["_class_name"]).from_config(settings)
    parts = pipeline.components | {"scheduler": scheduler}
    pipeline = type(pipeline)(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    noise = [jax.random.normal(jax.random.fold_in(KEY, i), (8, 8, 4)) for i in IDS]
    latents = torch.from_numpy(np.stack(noise).transpose(0, 3, 1, 2))
    if "controlnet" in pipeline.components:
        pictures = np.repeat(XRAYS, 3, -1).transpose(0, 3, 1, 2) / 255.0
        call["image"] = torch.from_numpy(pictures).float()
    with torch.no_grad():
        faces = pipeline(
            PROMPTS,
            height=16,
            width=16,
            latents=latents,
            num_inference_steps=config.sampling.num_steps,
            guidance_scale=config.sampling.guidance_scale,
            output_type="pt",
            **call,
        )
    return faces.images.permute(0, 2, 3, 1).numpy()


def controlled(reference, config):
    s = config.sampling
    # Newer transformers have no `text_model`, which diffusers asks for the final norm.
    encoder = reference.text_encoder
    if not hasattr(encoder, "text_model"):
        norm = types.SimpleNamespace(final_layer_norm=encoder.final_layer_norm)
        object.__setattr__(encoder, "text_model", norm)
    return their_faces(
        reference,
        config,
        negative_prompt=[s.negative_prompt] * 2,
        clip_skip=s.clip_skip or None,
        control_guidance_start=s.control_start,
        control_guidance_end=s.control_end,
    )


@pytest.fixture(scope="module")
def plain_faces():
    """`config -> faces` with the default settings of six steps, which are made once."""
    made = []

    def get(config):
        if not made:
            made.append(our_faces(config))
        return made[0]

    return get


@pytest.mark.parametrize(
    "changes",
    [
        dict(sampler="euler", spacing="linspace"),
        dict(sampler="unipc", negative_prompt="ugly, old"),
        dict(clip_skip=1, spacing="trailing"),
        dict(control_start=0.3, control_end=0.7),
        dict(sampler="unipc", spacing="linspace", clip_skip=2, control_end=0.5),
    ],
)
def test_a_setting_is_what_it_is_in_diffusers(pipelines, settings, plain_faces, changes):
    folder, reference = pipelines("1.5")
    config = settings(folder)
    config.sampling.num_steps = 6
    plain = plain_faces(config)
    config.sampling.update(changes)
    wanted = controlled(reference, config)
    assert np.abs(wanted - plain).max() > 5e-3  # it matters
    np.testing.assert_allclose(our_faces(config), wanted, atol=5e-5)


def test_guidance_rescale(pipelines, settings):
    """Against the pipeline that has it, which has no ControlNet."""
    folder, reference = pipelines("1.5")
    config = settings(folder)
    parts = {name: part for name, part in reference.components.items() if name != "controlnet"}
    plain = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    config.sampling.update(num_steps=4, controlnet_scale=0.0, guidance_rescale=0.7)
    wanted = their_faces(plain, config, guidance_rescale=0.7)
    assert np.abs(wanted - their_faces(plain, config)).max() > 5e-3
    np.testing.assert_allclose(our_faces(config), wanted, atol=5e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sampler="euler_a"), "sampling.sampler='euler_a': it is unknown. Use one of ddim, "),
        (dict(spacing="karras"), "sampling.spacing='karras': it is unknown"),
        (dict(num_steps=0), "sampling.num_steps=0: 0 sampling steps are not in 1 to 1000"),
        (dict(num_steps=1001), "sampling.num_steps=1001"),
        (dict(sampler="unipc", num_steps=1000), "sampling.num_steps=1000: .* don't fit"),
        (dict(clip_skip=3), "sampling.clip_skip=3: the text encoder has 2 layers"),
        (dict(clip_skip=-1), "sampling.clip_skip=-1"),
        (dict(guidance_rescale=1.1), "sampling.guidance_rescale=1.1: it is outside 0 to 1"),
        (dict(guidance_rescale=float("nan")), "sampling.guidance_rescale=nan"),
        (dict(control_start=0.6, control_end=0.5), "sampling.control_start=0.6"),
        (dict(control_start=0.5, control_end=0.5), "sampling.control_start=0.5"),
        (dict(control_end=1.5), "sampling.control_end=1.5: it is outside 0 to 1"),
        (dict(control_end=0.01), "none of 50 steps lies fully between"),
        (dict(eta=-0.5), "sampling.eta=-0.5"),
        (dict(temperature=-1.0), "sampling.temperature=-1.0: it is negative"),
        (
            dict(guidance_scale=1.0, negative_prompt="ugly"),
            "'ugly': it has no effect without guidance",
        ),
        (
            dict(guidance_scale=1.0, guidance_rescale=0.5),
            "sampling.guidance_rescale=0.5: it has no",
        ),
        (dict(negative_prompt="very " * 30), "sampling.negative_prompt: .* tokens"),
        (dict(negative_prompt="\u96ea"), "sampling.negative_prompt: .*doesn't know"),
    ],
)
def test_what_cannot_be_meant_is_refused(pipelines, settings, changes, message):
    config = settings(pipelines("1.5")[0])
    config.sampling.update(changes)
    with pytest.raises(InputError, match=message) as error:
        make_method(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        dict(clip_skip=2),
        dict(guidance_rescale=1.0),
        dict(control_start=0.98),
        dict(control_end=0.02),
        dict(sampler="unipc", num_steps=999, spacing="linspace"),
        dict(eta=1.0, temperature=0.0),
        dict(negative_prompt="v" * 75),
        dict(guidance_scale=1.0),
    ],
)
def test_near_misses_are_accepted(pipelines, settings, changes):
    config = settings(pipelines("1.5")[0])
    config.sampling.update(changes)
    make_method(config)


def test_xray_counts_in_its_part_of_the_steps_only(pipelines, settings):
    """In half precision too, where a strength of another type would widen the residuals."""
    config = settings(pipelines("1.5")[0], compute_dtype="bfloat16")
    method = make_method(config)
    published = method.load(sharding.make_mesh(1, 1), frozen_only=False)
    state, frozen = method.init(jax.random.key(0), published)
    x, t, context = jnp.ones((2, 8, 8, 4)), jnp.full(2, 500), jnp.zeros((2, 77, 32))

    @jax.jit
    def output(xray, strength):
        params = state["params"] | frozen
        picture = method.condition(params, xray)
        return method._denoiser(params, picture, 1.0)(x, t, context, strength)

    other = np.roll(XRAYS, 1, 0)
    np.testing.assert_array_equal(output(XRAYS, 0.0), output(other, 0.0))
    assert np.abs(output(XRAYS, 1.0) - output(other, 1.0)).max() > 1e-2
