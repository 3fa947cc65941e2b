"""Out again: what diffusers makes of an exported folder."""

import functools
import inspect
import json
import shutil

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from cranio_jax import diffusion
from cranio_jax.data.prompts import make_tokenizer
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.jobs.export import export
from cranio_jax.methods import make_method
from cranio_jax.models import OutlineNetwork
from cranio_jax.models.functional import Network
from cranio_jax.pretrained import pipeline as published_pipeline
from cranio_jax.pretrained import save_outline, sha256
from cranio_jax.pretrained.names import torch_key, torch_shape
from cranio_jax.training import loop


@pytest.fixture(scope="module")
def published(pipelines, tmp_path_factory):
    """A folder with PNDM, the class of Stable Diffusion 1.5, which knows no zero terminal SNR."""
    folder = tmp_path_factory.mktemp("published") / "sd-2.1-v"
    shutil.copytree(pipelines("2.1-v")[0], folder)
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler = diffusers.PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1)
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def trained(published, records, tmp_path_factory):
    """`(config, workdir, state)` after two steps, with a schedule of zero terminal SNR."""
    from configs import common, from_scratch

    c = from_scratch.get_config("smoke")
    c.data.data_dir = str(records)
    c.data.settings.size = 32
    c.pretrained.model = str(published)
    c.prompt.update(tokenizer="pretrained", length=77)
    c.method = common.get_config().method
    c.method.update(
        name="cranio_diff",
        trained=("controlnet",),
        codec="vae",
        prompt_dropout=0.1,
        timesteps="uniform",
        outline_weight=0.0,
        true_outline=0.0,
        loss_weight="none",
        min_snr_gamma=5.0,
    )
    c.method.scheduler = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    c.sampling.update(num_steps=5, clip=0.0, guidance_scale=3.0)
    c.train.update(
        num_steps=2, checkpoint_every=0, learning_rate=1e-3, warmup_steps=0, schedule="constant"
    )
    workdir = tmp_path_factory.mktemp("trained")
    return c, workdir, loop.train(c, workdir)


@pytest.fixture(scope="module")
def exported(trained):
    """`weights -> folder`."""
    config, workdir, _ = trained

    @functools.cache
    def get(weights):
        config.export.update(weights=weights, dtype="float32")
        return export(config, workdir)

    return get


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_diffusers_opens_it_and_finds_every_bit(trained, exported, pipelines, weights):
    _, _, state = trained
    folder = exported(weights)
    pipeline, info = diffusers.ControlNetModel.from_pretrained(
        folder / "controlnet", output_loading_info=True
    )
    assert not any(info.values()), info
    params = state["ema" if weights == "ema" else "params"]["controlnet"]
    found, before = pipeline.state_dict(), pipelines("2.1-v")[1].controlnet.state_dict()
    assert {torch_key(path): torch_shape(path, p.shape) for path, p in params.items()} == {
        k: tuple(v.shape) for k, v in found.items()
    }
    for path, p in params.items():
        value = found[torch_key(path)].numpy()
        axes = (-1, -2, *range(p.ndim - 2)) if path.endswith("kernel") else range(p.ndim)
        np.testing.assert_array_equal(value, np.transpose(p, axes))
    assert any(not torch.equal(found[key], before[key]) for key in found)  # training moved it


def test_whole_pipeline_and_card(trained, exported, pipelines):
    config, workdir, _ = trained
    folder = exported("ema")
    assert folder == workdir / "export" / "ema_float32"
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    reference = pipelines("2.1-v")[1]
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(pipeline, part).state_dict(), getattr(reference, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    images = pipeline(
        "a man", torch.rand(1, 3, 32, 32), num_inference_steps=2, output_type="np"
    ).images
    assert images.shape == (1, 32, 32, 3) and np.isfinite(images).all()
    assert pipeline.unet.config.sample_size * pipeline.vae_scale_factor == 32
    card = (folder / "README.md").read_text()
    assert (
        "sd-2.1-v; trained: controlnet" in card
        and "step 2 of 2" in card
        and str(workdir) not in card
    )
    config.export.update(weights="ema", dtype="float32")
    with pytest.raises(InputError, match="exists; remove it"):
        export(config, workdir)


def test_diffusers_samples_as_here(trained, exported):
    """Schedule, spacing and ends are followed, and not only written."""
    config, _, state = trained
    folder = exported("ema")
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.scheduler) is diffusers.DDIMScheduler
    assert pipeline.scheduler.alphas_cumprod[-1] == 0
    method = make_method(config)
    frozen = jax.jit(method.init)(
        jax.random.key(0), method.load(sharding.make_mesh(1, 1), frozen_only=False)
    )[1]
    xray = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 1), dtype=np.uint8)
    key, ids = jax.random.key(3), np.array([7], np.uint32)
    batch = {"xray": xray, "id_hash": ids, "prompt_ids": make_tokenizer(config)(["a man"])}
    ours = jax.jit(method.generate)(jax.device_get(state["ema"]), frozen, batch, key)

    noise = jax.random.normal(jax.random.fold_in(key, 7), (16, 16, 4))
    with torch.no_grad():
        theirs = pipeline(
            ["a man"],
            torch.from_numpy(np.repeat(xray, 3, -1).transpose(0, 3, 1, 2) / 255.0).float(),
            latents=torch.from_numpy(np.array(noise).transpose(2, 0, 1)[None]),
            num_inference_steps=5,
            guidance_scale=3.0,
            output_type="np",
        ).images
    np.testing.assert_allclose(np.asarray(ours) / 2 + 0.5, theirs, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_each_sampler_has_its_class(trained, sampler, spacing):
    config = trained[0].copy_and_resolve_references()
    config.sampling.update(sampler=sampler, spacing=spacing)
    method = make_method(config)
    settings = method.scheduler_config
    name = settings["_class_name"]
    scheduler = getattr(diffusers, name).from_config(settings)
    assert type(scheduler).__name__ == name
    known = inspect.signature(type(scheduler).__init__).parameters
    assert settings.keys() - {"_class_name"} <= known.keys()  # none is ignored
    np.testing.assert_allclose(scheduler.alphas_cumprod, method.schedule.alphas_cumprod, atol=1e-6)
    scheduler.set_timesteps(5)
    np.testing.assert_array_equal(scheduler.timesteps, method.table.timesteps)


def test_half_precision(trained):
    config, workdir, state = trained
    config.export.update(weights="ema", dtype="float16")
    folder = export(config, workdir)
    tensors = safetensors.numpy.load_file(
        folder / "controlnet" / "diffusion_pytorch_model.safetensors"
    )
    assert {t.dtype for t in tensors.values()} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(
        tensors["conv_in.bias"], np.asarray(state["ema"]["controlnet"]["conv_in.bias"], np.float16)
    )
    # Without a word on precision, all parts are opened in the same.
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder)
    assert {pipeline.unet.dtype, pipeline.text_encoder.dtype} == {torch.float32}


@pytest.mark.slow
def test_diffusers_adds_the_low_rank_additions(pipelines, records, tmp_path):
    from configs import common, from_scratch

    c = from_scratch.get_config("smoke")
    c.data.data_dir = str(records)
    c.data.settings.size = 32
    folder, reference = pipelines("1.5")
    c.pretrained.model = str(folder)
    c.prompt.update(tokenizer="pretrained", length=77)
    c.method = common.get_config().method
    c.method.update(
        name="cranio_diff",
        trained=("controlnet", "unet_lora"),
        codec="vae",
        timesteps="uniform",
        outline_weight=0.0,
        true_outline=0.0,
        loss_weight="none",
        min_snr_gamma=5.0,
    )
    c.method.update(prompt_dropout=0.0, lora_rank=3)
    c.method.learning_rates.unet_lora = 0.1  # so that two steps show
    c.train.update(
        num_steps=2, checkpoint_every=0, learning_rate=1e-3, warmup_steps=0, schedule="constant"
    )
    state = loop.train(c, tmp_path)
    method = make_method(c)
    additions = jax.device_get(state["ema"]["unet_lora"])
    assert len(additions) == 2 * 4 * sum(
        type(m).__name__ == "Attention" for m in reference.unet.modules()
    )

    exported = export(c, tmp_path)
    tensors = safetensors.numpy.load_file(exported / "pytorch_lora_weights.safetensors")
    assert tensors.keys() == {f"unet.{torch_key(path)}" for path in additions}
    for path, value in additions.items():
        np.testing.assert_array_equal(tensors[f"unet.{torch_key(path)}"], np.transpose(value))
    assert "load_lora_weights" in (exported / "README.md").read_text()

    rng = np.random.default_rng(0)
    x, words, t = (
        rng.standard_normal((2, 8, 8, 4), np.float32),
        rng.standard_normal((2, 16, 32), np.float32),
        300,
    )
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(exported)

    def answer():
        return (
            pipeline.unet(torch.from_numpy(x.transpose(0, 3, 1, 2)), t, torch.from_numpy(words))
            .sample.detach()
            .numpy()
        )

    plain = answer()
    pipeline.load_lora_weights(exported)
    wanted = answer().transpose(0, 2, 3, 1)
    assert np.linalg.norm(wanted - plain.transpose(0, 2, 3, 1)) > 1e-3 * np.linalg.norm(wanted)
    frozen = jax.jit(method.init)(
        jax.random.key(0), method.load(sharding.make_mesh(1, 1), frozen_only=False)
    )[1]
    got = method.networks["unet"].bind(frozen["unet"] | additions)(
        x, np.full(2, t, np.float32), words
    )
    assert np.linalg.norm(got - wanted) < 1e-4 * np.linalg.norm(wanted)


def write_outline(path, seed):
    network = Network(lambda rngs: OutlineNetwork((4, 8), 16, rngs=rngs))
    settings = {"widths": (4, 8), "side": 16}
    save_outline(path, network.init(jax.random.key(seed)), settings, "float32")
    return path


def test_an_outline_network_moves_with_its_controlnet(trained, published, tmp_path):
    config = trained[0].copy_and_resolve_references()
    first, second = (write_outline(tmp_path / f"{i}.safetensors", i) for i in range(2))
    config.pretrained.outline = str(first)
    method = make_method(config)
    # The published ControlNet has never seen an outline.
    assert method.untrained() == ["controlnet"]
    mesh = sharding.make_mesh(1, 1)
    state, frozen = method.init(jax.random.key(0), method.load(mesh, frozen_only=False))
    folder = tmp_path / "exported"
    method.write_pipeline(folder, state["ema"] | frozen, state, "float32")
    beside = folder / "controlnet" / "outline.safetensors"
    assert beside.read_bytes() == first.read_bytes()
    assert any(f"`controlnet/{beside.name}` finds in it" in line for line in method.describe())
    _, info = diffusers.ControlNetModel.from_pretrained(
        folder / "controlnet", output_loading_info=True
    )
    assert not any(info.values()), info

    # Read again: whole, or as the ControlNet of another model.
    config.pretrained.outline = ""
    for config.pretrained.model, config.pretrained.controlnet in (
        (str(folder), ""),
        (str(published), str(folder)),
    ):
        again = make_method(config)
        assert again.untrained() == [] and "outline" in again.networks
        assert again.weight_hashes()["outline"] == sha256(first)
    # Another ControlNet sees X-rays alone; other outlines mean that it must be trained.
    config.pretrained.update(model=str(folder), controlnet=str(published))
    assert "outline" not in make_method(config).networks
    config.pretrained.update(controlnet="", outline=str(second))
    assert make_method(config).untrained() == ["controlnet"]
    config.pretrained.outline = ""
    config.method.name = "text_to_image"
    config.method.trained = ("unet",)
    assert "outline" not in make_method(config).networks

    # Without the file.
    config.method.update(name="cranio_diff", trained=("controlnet",))
    beside.rename(tmp_path / "lost.safetensors")
    published_pipeline._open_pipeline.cache_clear()
    with pytest.raises(InputError, match="has learnt with an outline network .* not beside it"):
        make_method(config)


def test_nothing_of_stable_diffusion_to_export(config, tmp_path):
    with pytest.raises(InputError, match="pretrained.model, or from .*; set them"):
        export(config, tmp_path)
