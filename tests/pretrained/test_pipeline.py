"""Whole pipelines against diffusers', loaded from the folders that it writes."""

import hashlib
import importlib
import json
import shutil
import zlib

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from cranio_jax import main, models
from cranio_jax.data.prompts import make_tokenizer
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.methods.cranio_diff import losses
from cranio_jax.models.functional import Network
from cranio_jax.pretrained import save, save_embedder, save_outline, tensors_of
from cranio_jax.pretrained.names import from_torch, torch_key
from cranio_jax.runs import workdir


def loaded(config):
    """`(method, state, frozen)` as training starts with."""
    method = make_method(config)
    return method, *method.init(
        jax.random.key(0), method.load(sharding.make_mesh(1, 1), frozen_only=False)
    )


@pytest.mark.parametrize(
    "family",
    [
        "1.5",
        pytest.param("2.1-base", marks=pytest.mark.slow),
        pytest.param("2.1-v", marks=pytest.mark.slow),
    ],
)
def test_fifty_steps_with_guidance(pipelines, settings, family):
    folder, reference = pipelines(family)
    config = settings(folder)
    method, state, frozen = loaded(config)
    prompts = ["portrait of a woman, 45", "portrait of a man, 65"]
    ids, rng, key = np.array([7, 8], np.uint32), np.random.default_rng(0), jax.random.key(3)
    xrays = rng.integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
    batch = {
        "xray": jnp.asarray(xrays),
        "id_hash": jnp.asarray(ids),
        "prompt_ids": jnp.asarray(make_tokenizer(config)(prompts)),
    }
    faces = jax.jit(method.generate)(state["params"], frozen, batch, key)

    noise = np.stack([jax.random.normal(jax.random.fold_in(key, i), (8, 8, 4)) for i in ids])
    picture = torch.from_numpy(np.repeat(xrays, 3, -1).transpose(0, 3, 1, 2) / 255.0).float()
    with torch.no_grad():
        wanted = reference(
            prompts, picture, num_inference_steps=50, guidance_scale=7.5,
            latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)), output_type="pt",
        ).images.permute(0, 2, 3, 1).numpy()  # fmt: skip
    assert wanted.std() > 0.02
    np.testing.assert_allclose(np.asarray(faces) / 2 + 0.5, wanted, atol=1e-3)


@pytest.mark.parametrize("seen_as", ["xray", "condition"])
def test_published_weights_make_faces_of_an_xray(
    pipelines, settings, tmp_path, monkeypatch, seen_as
):
    """Without a workdir there is no training run; the faces are diffusers'.

    With an outline network, diffusers is given the picture that is written for it.
    """
    monkeypatch.chdir(tmp_path)
    folder, reference = pipelines()
    config = settings(folder)
    if seen_as == "condition":
        network = Network(lambda rngs: models.OutlineNetwork((4, 8), 16, rngs=rngs))
        copy = shutil.copytree(folder, tmp_path / "copy")
        file = copy / "controlnet" / "outline.safetensors"
        params = network.init(jax.random.key(0))
        save_outline(file, params, {"widths": (4, 8), "side": 16}, "float32")
        stated = json.loads((file.parent / "config.json").read_text())
        stated["_outline"] = hashlib.sha256(file.read_bytes()).hexdigest()
        (file.parent / "config.json").write_text(json.dumps(stated))
        config.pretrained.model = str(copy)
    config.job = "reconstruct"
    config.sampling.update(num_steps=4, guidance_scale=2.0)
    xray = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(xray).save("xray.png")
    config.reconstruct.update(xrays="xray.png", num_samples=2, batch_size=2)
    main.run(config, None)

    (made,) = (tmp_path / "reconstructions").iterdir()
    faces = np.stack([np.asarray(Image.open(made / f"face_{k}.png")) for k in range(2)])
    key = jax.random.fold_in(jax.random.key(config.seed + 2), 0)
    seen = np.asarray(Image.open(made / f"{seen_as}.png"))
    assert (made / "condition.png").exists() == (seen_as == "condition")
    assert np.array_equal(seen[..., 0], np.asarray(Image.open(made / "xray.png"))[..., 0])
    first = zlib.crc32(np.ascontiguousarray(seen[..., :1]).tobytes())
    ids = [np.uint32((first + k) % 2**32) for k in range(2)]
    noise = np.stack([jax.random.normal(jax.random.fold_in(key, i), (8, 8, 4)) for i in ids])
    prompt = json.loads((made / "record.json").read_text())["prompt"]
    picture = torch.from_numpy(np.stack([seen.transpose(2, 0, 1) / 255.0] * 2)).float()
    with torch.no_grad():
        wanted = reference(
            [prompt] * 2, picture, num_inference_steps=4, guidance_scale=2.0,
            latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)), output_type="np",
        ).images  # fmt: skip
    assert wanted.std() > 0.02
    np.testing.assert_allclose(faces / 255.0, wanted, atol=1 / 255)


@pytest.mark.parametrize(
    ("recipe", "trained", "files"),
    [("cranio_diff", {"controlnet", "unet"}, 3), ("cranio_diff_robust", {"controlnet"}, 1)],
)
def test_recipes_fit_a_published_folder(pipelines, recipe, trained, files, tmp_path):
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.pretrained.model = str(pipelines()[0])
    config.prompt.length = 77
    config.method.controlnet = dict(conditioning_embedding_out_channels=(4, 8))
    with pytest.raises(InputError, match=r"method.losses.\w+_file is empty"):
        make_method(config)
    # What an embedder is, its file says.
    small = {"network": "iresnet18", "channels": 4, "height": 16, "width": 16}
    params = jax.jit(Network(models.make_embedder(small)).init)(jax.random.key(0))
    save_embedder(tmp_path / "embedder.safetensors", params, small, (0.0, 0.0, 1.0, 1.0), seed=0)
    config.method.losses.update(
        trunk_file="vgg16.pth",
        heads_file="vgg.pth",
        embedder_file=str(tmp_path / "embedder.safetensors"),
    )
    method = make_method(config)
    assert set(method.trained) == trained and sum(map(len, method.feature_files.values())) == files
    config.train.batch_size = 16
    assert (
        config.train.num_steps
        == {"cranio_diff": 350 * 3600 // 16, "cranio_diff_robust": 30_000}[recipe]
    )
    config.pretrained.model = ""
    with pytest.raises(InputError, match="'pretrained' with pretrained.model or"):
        make_method(config)


def test_a_light_decoder_stands_in(pipelines, settings, tmp_path):
    folder, _ = pipelines()
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    tiny.save_pretrained(tmp_path / "taesd")
    network = Network(lambda rngs: models.LPIPS("squeeze", rngs=rngs))
    save(
        tmp_path / "lpips",
        "features",
        tensors_of(jax.jit(network.init)(jax.random.key(1))),
        "float32",
    )
    config = settings(folder)
    config.data.settings.size = 32  # SqueezeNet shrinks much
    file = str(tmp_path / "lpips" / "diffusion_pytorch_model.safetensors")
    config.method.losses.update(
        lpips=1.0,
        trunk="squeeze",
        trunk_file=file,
        heads_file=file,
        gate="none",
        decoder=str(tmp_path / "taesd"),
    )
    method, state, frozen = loaded(config)
    latents = np.random.default_rng(0).standard_normal((2, 16, 16, 4)).astype(np.float32)
    batch = {"face": jnp.full((2, 32, 32, 3), 90, jnp.uint8), "frontal": jnp.ones(2)}
    terms = losses.decoded_terms(
        method, state["params"] | frozen, batch, jnp.asarray(latents), jnp.array([5, 9])
    )
    with torch.no_grad():
        picture = tiny.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2))).sample
    picture = jnp.asarray(picture.permute(0, 2, 3, 1).numpy())
    face = jnp.full((2, 32, 32, 3), 90 / 127.5 - 1.0)
    wanted = network.bind(frozen["lpips"])(picture, face).mean()
    np.testing.assert_allclose(terms["lpips"], wanted, rtol=1e-4)


def test_results_name_the_weights(pipelines, settings):
    folder, _ = pipelines()
    hashes = make_method(settings(folder)).weight_hashes()
    assert hashes.keys() == {"unet", "controlnet", "vae", "text_encoder", "tokenizer"}
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    assert hashes["vae"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("change", ["two words exchange their ids", "words are split elsewhere"])
def test_another_tokenizer_is_another_experiment(pipelines, settings, tmp_path, change):
    """The text encoder's weights would not know what the ids mean."""
    folder, _ = pipelines()
    config = settings(folder)
    workdir.claim(tmp_path, config, make_method(config))

    config.pretrained.tokenizer = str(shutil.copytree(folder / "tokenizer", tmp_path / "same"))
    workdir.check(tmp_path, config, make_method(config))

    exchanged = shutil.copytree(folder / "tokenizer", tmp_path / "exchanged")
    (exchanged / "vocab.json").unlink(missing_ok=True)
    (exchanged / "merges.txt").unlink(missing_ok=True)
    whole = json.loads((exchanged / "tokenizer.json").read_text())
    before = json.dumps(whole)
    if change.startswith("two words"):
        vocabulary = whole["model"]["vocab"]
        names = {"a</w>": "b</w>", "b</w>": "a</w>"}
        whole["model"]["vocab"] = {names.get(word, word): n for word, n in vocabulary.items()}
    else:
        whole["model"]["merges"] = []
    assert json.dumps(whole) != before
    (exchanged / "tokenizer.json").write_text(json.dumps(whole))
    config.pretrained.tokenizer = str(exchanged)
    with pytest.raises(InputError, match="other weights of tokenizer"):
        workdir.check(tmp_path, config, make_method(config))


def test_tokens_are_the_checkpoints(pipelines, settings):
    folder, reference = pipelines()
    text = ["Portrait of an old man, 65 years", ""]
    wanted = reference.tokenizer(
        text, padding="max_length", max_length=77, truncation=True
    ).input_ids
    np.testing.assert_array_equal(make_tokenizer(settings(folder))(text), wanted)


@pytest.mark.parametrize("family", [pytest.param("1.5", marks=pytest.mark.slow), "2.1-v"])
def test_gradients_of_the_controlnet(pipelines, settings, family):
    folder, reference = pipelines(family)
    method, state, frozen = loaded(settings(folder))
    rng = np.random.default_rng(1)
    batch = {
        "xray": rng.integers(0, 256, (2, 16, 16, 1), dtype=np.uint8),
        "face": rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8),
        "prompt_ids": rng.integers(0, 190, (2, 77), dtype=np.int32),
    }
    draws = {
        "timesteps": np.array([100, 700]),
        "noise": rng.standard_normal((2, 8, 8, 4), np.float32),
        "drop_prompt": np.zeros(2, bool),
    }
    gradients, _ = jax.jit(jax.grad(method.loss, has_aux=True))(
        state["params"], frozen, batch, draws
    )

    def turned(x):
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))

    steps, noise = torch.from_numpy(draws["timesteps"]), turned(draws["noise"])
    with torch.no_grad():
        posterior = reference.vae.encode(
            turned(batch["face"].astype(np.float32) / 127.5 - 1.0)
        ).latent_dist
        latents = posterior.mean * reference.vae.config.scaling_factor
        context = reference.text_encoder(
            torch.from_numpy(batch["prompt_ids"]).long()
        ).last_hidden_state
        noisy = reference.scheduler.add_noise(latents, noise, steps)
        velocity = family.endswith("-v")
        target = reference.scheduler.get_velocity(latents, noise, steps) if velocity else noise
    picture = turned(np.repeat(batch["xray"], 3, -1).astype(np.float32) / 255.0)
    reference.controlnet.zero_grad()
    down, middle = reference.controlnet(
        noisy, steps, context, controlnet_cond=picture, return_dict=False
    )
    output = reference.unet(
        noisy,
        steps,
        context,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample
    ((output - target) ** 2).mean().backward()
    wanted = {name: p.grad.numpy() for name, p in reference.controlnet.named_parameters()}
    assert len(gradients["controlnet"]) == len(wanted)
    for path, gradient in gradients["controlnet"].items():
        theirs = from_torch(path, wanted[torch_key(path)])
        error = np.linalg.norm(gradient - theirs) / max(np.linalg.norm(theirs), 1e-6)
        assert error < 1e-3, (path, error)
