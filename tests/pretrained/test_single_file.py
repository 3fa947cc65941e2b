"""Checkpoints of one file, against diffusers' `from_single_file` and against its folders."""

import functools
import json
import sys
import types

import diffusers
import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from cranio_jax.data.prompts import make_tokenizer
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.pretrained import open_pipeline
from cranio_jax.pretrained.files import Tensor
from cranio_jax.pretrained.single_file import read_part, settings_of
from tests.pretrained import ldm

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def states(pipelines):
    """`family -> state dictionary` of whole checkpoints under the authors' keys."""

    @functools.cache
    def get(family):
        return ldm.state(pipelines(family)[1].components)

    return get


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Saves a state dictionary to a new file; returns its path."""

    def save(state, name="model.safetensors", notes=None):
        path = tmp_path_factory.mktemp("files") / name
        if name.endswith(".safetensors"):
            safetensors.torch.save_file(state, path, notes)
        else:
            torch.save(state, path)
        return path

    return save


@pytest.fixture
def config(pipelines, settings):
    """A configuration for a file: `(path, family) -> ConfigDict`."""

    def make(path, family="1.5", **changes):
        folder, reference = pipelines(family)
        c = settings(path)
        c.pretrained.tokenizer = str(folder)
        heads = reference.unet.config.attention_head_dim
        c.method.unet = dict(attention_head_dim=heads, norm_num_groups=8)
        c.method.vae = dict(norm_num_groups=4)
        c.method.text_encoder = dict(num_attention_heads=4)
        if family == "2.1-v":
            c.method.scheduler = dict(prediction_type="v_prediction")
        c.pretrained.update(changes)
        return c

    return make


def parameters(config):
    method = make_method(config)
    return jax.device_get(method.load(sharding.make_mesh(1, 1), frozen_only=False))


def same(found, wanted, rtol=0.0):
    assert found.keys() == wanted.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), found, wanted)


def read(config, part):
    with open_pipeline(config.pretrained).open(part) as tensors:
        return {key: np.asarray(tensor.read(), np.float32) for key, tensor in tensors.items()}


def agrees(found, state, skip="position_ids"):
    wanted = {k.removeprefix("text_model."): v for k, v in state.items() if skip not in k}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value.float().numpy())


@pytest.mark.parametrize("family", ["1.5", "2.1-v"])
def test_each_tensor_is_diffusers(pipelines, states, write, config, family):
    folder, _ = pipelines(family)
    file = write(states(family))
    pipeline = diffusers.StableDiffusionPipeline.from_single_file(file, config=str(folder))
    for part in PARTS:
        agrees(read(config(file, family), part), getattr(pipeline, part).state_dict())


@pytest.mark.parametrize("family", ["1.5", "2.1-v"])
def test_a_method_is_the_folders(pipelines, states, write, config, settings, family):
    folder, reference = pipelines(family)
    control = {f"control_model.{k}": v for k, v in ldm.denoiser_state(reference.controlnet).items()}
    file = write(states(family) | {k: v.contiguous() for k, v in control.items()})
    single, whole = make_method(config(file, family)), make_method(settings(folder))
    mesh = sharding.make_mesh(1, 1)
    same(*(jax.device_get(m.load(mesh, frozen_only=False)) for m in (single, whole)))
    np.testing.assert_array_equal(single.schedule.alphas_cumprod, whole.schedule.alphas_cumprod)
    assert single.schedule.prediction == whole.schedule.prediction
    hashes = single.weight_hashes()
    assert hashes.pop("tokenizer") != single.pipeline.hash("unet")
    assert set(hashes.values()) == {single.pipeline.hash("unet")}
    assert single.pipeline.name == "model.safetensors"


class ModelCheckpoint:
    """Stands for Lightning's callback, which old checkpoints hold as a class."""


@pytest.fixture
def lightning(monkeypatch):
    """Modules by Lightning's names, as long as a file is written."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for i in range(3):
        module = types.ModuleType(".".join(name.split(".")[: i + 1]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules[name].ModelCheckpoint = ModelCheckpoint
    monkeypatch.setattr(ModelCheckpoint, "__module__", name)
    return monkeypatch


def test_files_of_training_frameworks(states, write, config, lightning):
    callbacks = {ModelCheckpoint: {"best": np.float64(0.5), "of": ModelCheckpoint()}}
    beside = {"global_step": 875000, "callbacks": callbacks, "lr_schedulers": [{"base": [0.1]}]}
    state = states("1.5")
    # Averages, a noise schedule and a discriminator, as Lightning saves what a module holds.
    more = {"model_ema.diffusion_modeltime_embed0weight": torch.ones(2), "betas": torch.ones(9)}
    levels = torch.from_numpy(diffusers.DDIMScheduler(**SCHEDULE).alphas_cumprod.numpy())
    more |= {"first_stage_model.loss.logvar": torch.ones(()), "alphas_cumprod": levels}
    more["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)
    file = write(beside | {"state_dict": state | more}, "v1.ckpt")
    lightning.undo()
    with pytest.raises(InputError, match=r"calls tests\.pretrained|more than weights"):
        read(config(write({"state_dict": state, "x": ModelCheckpoint()}, "bad.ckpt")), "unet")
    plain = config(write(state))
    for part in PARTS:
        same(read(config(file), part), read(plain, part))
    strange = state | {"alphas_cumprod": levels**2}
    with pytest.raises(InputError, match=r"strange.ckpt: its noise levels \(alphas_cumprod, 1000"):
        read(config(write(strange, "strange.ckpt")), "unet")


SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(states, write, config, dtype):
    state = {key: value.to(dtype) for key, value in states("1.5").items()}
    own = {k: v for k, v in state.items() if k.startswith("model.diffusion_model.time_embed")}
    found = read(config(write(state)), "unet")
    assert own
    for key, value in own.items():
        leaf = key.rsplit(".", 1)[1]
        new = f"time_embedding.linear_{1 if '.0.' in key else 2}.{leaf}"
        np.testing.assert_array_equal(found[new], value.float().numpy())


@pytest.mark.parametrize(
    ("prefix", "name"),
    [("control_model.", "control_sd15_canny.pth"), ("", "control_v11p_sd15_canny.safetensors")],
)
def test_a_controlnet(pipelines, write, settings, tmp_path, prefix, name):
    folder, reference = pipelines()
    c = settings(folder)

    def written(model):
        state = {prefix + key: v.contiguous() for key, v in ldm.denoiser_state(model).items()}
        c.pretrained.controlnet = str(write(state, name))
        agrees(read(c, "controlnet"), model.state_dict())
        return c.pretrained.controlnet

    # diffusers' own reader knows the hint encoder of the published depth only.
    deep = dict(reference.controlnet.config) | dict(
        conditioning_embedding_out_channels=(4, 4, 8, 8)
    )
    deep = diffusers.ControlNetModel.from_config(deep)
    deep.save_pretrained(tmp_path)
    theirs = diffusers.ControlNetModel.from_single_file(written(deep), config=str(tmp_path))
    agrees(read(c, "controlnet"), theirs.state_dict())
    written(reference.controlnet)
    del c.method.controlnet  # the file tells the widths of its hint encoder
    found = make_method(c).settings["controlnet"]
    assert tuple(found["conditioning_embedding_out_channels"]) == (4, 8)
    assert found["attention_head_dim"] == 8 and found["norm_num_groups"] == 8


def test_controlnets_of_other_files(pipelines, states, write, config):
    _, reference = pipelines()
    state = {k: v.contiguous() for k, v in ldm.denoiser_state(reference.controlnet).items()}
    whole = states("1.5") | {f"control_model.{key}": value for key, value in state.items()}
    plain = write(states("1.5"))
    for other in (write(whole, "full.pth"), write(reference.controlnet.state_dict())):
        agrees(
            read(config(plain, controlnet=str(other)), "controlnet"),
            reference.controlnet.state_dict(),
        )
    for wrong, name, message in (
        (state | {"difference": torch.ones(())}, "diff.safetensors", "it holds the difference"),
        (state, "control_v11e_sd15_shuffle.pth", "shuffle ControlNet, which pools"),
        (states("1.5"), "model.pth", "it holds a U-Net and an autoencoder and a text encoder, exp"),
        ({"body.0.block1.weight": torch.ones(2)}, "adapter.pth", "so it is a T2I-Adapter"),
        (state | {"label_emb.0.0.weight": torch.ones(2)}, "xl.pth", "Diffusion XL"),
    ):
        with pytest.raises(InputError, match=f"pretrained.controlnet={name}: .*{message}"):
            open_pipeline(config(plain, controlnet=str(write(wrong, name))).pretrained)


def test_an_autoencoder_of_its_own(pipelines, states, write, config, settings, tmp_path):
    folder, _ = pipelines()
    other = pipelines("2.1-v")[1].vae
    moved = {key: value + 1 for key, value in other.state_dict().items()}
    other = diffusers.AutoencoderKL.from_config(other.config)
    other.load_state_dict(moved)
    other.save_pretrained(tmp_path / "vae")
    state = {k: v.contiguous() for k, v in ldm.vae_state(other).items()}
    behind = {f"first_stage_model.{key}": value for key, value in state.items()}
    loss = {"loss.logvar": torch.ones(()), "model_ema.decay": torch.ones(())}
    files = [
        tmp_path / "vae",
        tmp_path / "vae" / "diffusion_pytorch_model.safetensors",
        write(state, "vae-ft-mse-840000-ema-pruned.safetensors"),
        write({"state_dict": state | loss, "global_step": 840000}, "vae-ft.ckpt"),
        write(behind),
    ]
    bare = {k: v for k, v in states("1.5").items() if not k.startswith("first_stage_model.")}
    for base in (settings(folder), config(write(states("1.5"))), config(write(bare))):
        for file in files:
            base.pretrained.vae = str(file)
            base.method.vae = dict(norm_num_groups=4)
            agrees(read(base, "vae"), moved)
    loaded = parameters(base)
    np.testing.assert_array_equal(
        loaded["vae"]["encoder.conv_in.bias"], moved["encoder.conv_in.bias"]
    )
    with pytest.raises(InputError, match="it holds no autoencoder. Set pretrained.vae"):
        open_pipeline(config(write(bare)).pretrained)
    with pytest.raises(InputError, match="autoencoder of Stable Diffusion XL, whose latents"):
        base.pretrained.vae = str(write(state, "sdxl_vae.safetensors"))
        open_pipeline(base.pretrained)
    settings_file = tmp_path / "vae" / "config.json"
    scaled = json.loads(settings_file.read_text()) | {"scaling_factor": 0.13025}
    settings_file.write_text(json.dumps(scaled))
    (tmp_path / "vae").rename(tmp_path / "xl")
    with pytest.raises(InputError, match="scaling_factor is 0.13025, the model's own has 0.18215"):
        base.pretrained.vae = str(tmp_path / "xl")
        open_pipeline(base.pretrained)


def widened(state, channels):
    key = "model.diffusion_model.input_blocks.0.0.weight"
    return state | {key: torch.ones(16, channels, 3, 3)}


REFUSED = {
    "inpainting": (lambda s: widened(s, 9), "9 input channels, so it is an inpainting model"),
    "pix2pix": (lambda s: widened(s, 8), "8 input channels, so it is InstructPix2Pix"),
    "depth": (lambda s: widened(s, 5), "so it is a depth model"),
    "xl": (lambda s: s | {"conditioner.embedders.0.a": torch.ones(1)}, "Stable Diffusion XL"),
    "sd3": (lambda s: {"model.diffusion_model.joint_blocks.0.a": torch.ones(1)}, "Diffusion 3"),
    "flux": (lambda s: {"double_blocks.0.img_attn.a": torch.ones(1)}, "Flux"),
    "classes": (lambda s: s | {"model.diffusion_model.label_emb.0.0.w": torch.ones(1)}, "classes"),
    "lora": (lambda s: {"lora_unet_x.lora_up.weight": torch.ones(1)}, "a LoRA, which pretrained"),
    "ema": (
        lambda s: {"model_ema.diffusion_modelout2bias": torch.ones(1)},
        "only averaged weights",
    ),
    "diffusers": (
        lambda s: {"conv_in.weight": torch.ones(1)},
        "it holds 1 tensors, such as 'conv_in",
    ),
    "text": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("cond_")},
        "it holds no text encoder. Name a whole",
    ),
    "cut": (
        lambda s: {k: v for k, v in s.items() if "middle_block.1.proj_in" not in k},
        "lacks the tensor 'mid_block.attentions.0.proj_in.weight'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_families_are_refused(states, write, config, kind):
    change, message = REFUSED[kind]
    with pytest.raises(InputError, match=f"pretrained.model=x.safetensors.* {message}"):
        open_pipeline(config(write(change(states("1.5")), "x.safetensors")).pretrained)


def test_a_tensor_too_many_or_few(states, write, config):
    state, name = states("1.5"), "model.diffusion_model.time_embed.3.bias"
    with pytest.raises(InputError, match=r"model.safetensors's unet holds 1 tensors that the"):
        parameters(config(write(state | {name: torch.ones(1)})))
    few = {k: v for k, v in state.items() if "time_embed.2.bias" not in k}
    with pytest.raises(InputError, match=r"lacks the tensor 'time_embedding.linear_2.bias'"):
        parameters(config(write(few)))
    with pytest.raises(InputError, match=r"nothing.safetensors: no such file"):
        open_pipeline(config("/tmp/nothing.safetensors").pretrained)


def test_what_a_file_does_not_tell(states, write, config):
    """Velocity or noise, and heads and groups of unusual widths."""
    file, state = write(states("2.1-v")), states("2.1-v")
    c = config(file, "2.1-v")
    del c.method.scheduler
    with pytest.raises(InputError, match=r"method.scheduler.prediction_type: .*'v_prediction' \(m"):
        make_method(c)
    for marked, notes in (
        (state | {"v_pred": torch.ones(0)}, None),
        (state, {"modelspec.prediction_type": "v"}),
    ):
        c.pretrained.model = str(write(marked, notes=notes))
        assert make_method(c).schedule.prediction == "v_prediction"
    c.pretrained.model = str(write(state, notes={"modelspec.prediction_type": "epsilon"}))
    assert make_method(c).schedule.prediction == "epsilon"
    c.pretrained.model = str(write(state | {"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}))
    assert make_method(c).schedule.alphas_cumprod[-1] == 0
    c = config(write(states("1.5")))
    c.method.unet = dict(norm_num_groups=8)
    assert make_method(c)  # eight heads, as all of 1.x
    del c.method.text_encoder
    with pytest.raises(InputError, match=r"method.text_encoder.num_attention_heads: model.safe"):
        make_method(c)


def full_size(second):
    """The three networks of Stable Diffusion 1.5 or 2.1, without memory."""
    blocks = dict(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4
    )
    unet = dict(cross_attention_dim=768)
    if second:
        heads = (5, 10, 20, 20)
        unet = dict(cross_attention_dim=1024, attention_head_dim=heads, use_linear_projection=True)
    text = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    if second:
        text = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16)
        text |= dict(num_hidden_layers=23, hidden_act="gelu")
    with torch.device("meta"):
        return dict(
            unet=diffusers.UNet2DConditionModel(**unet),
            vae=diffusers.AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks
            ),
            text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
            controlnet=diffusers.ControlNetModel(**unet),
        )


@pytest.mark.parametrize("second", [False, True], ids=["1.5", "2.1"])
def test_every_key_of_a_full_size(second):
    parts = full_size(second)
    state = ldm.state(parts)
    control = ldm.denoiser_state(parts["controlnet"])
    state |= {f"control_model.{key}": value for key, value in control.items()}
    tensors = {key: Tensor(tuple(value.shape), None) for key, value in state.items()}
    names = (*PARTS, "controlnet")
    told = settings_of(tensors, {}, names, "file")
    for part in names:
        found = {key: t.shape for key, t in read_part(tensors, part, "file").items()}
        wanted = parts[part].state_dict()
        wanted = {k.removeprefix("text_model."): tuple(v.shape) for k, v in wanted.items()}
        assert found == {k: shape for k, shape in wanted.items() if "position_ids" not in k}
        true = parts[part].config.to_dict() if part == "text_encoder" else parts[part].config
        for field, value in told[part].items():
            if field not in (
                "architectures",
                "model_type",
                "sample_size",
                "eos_token_id",
                "bos_token_id",
            ):
                plain = list(true[field]) if isinstance(true[field], (list, tuple)) else true[field]
                assert value == plain, (part, field)
    assert told["scheduler"]["prediction_type"] == (None if second else "epsilon")


@pytest.mark.parametrize("family", ["1.5", "2.1-v"])
def test_prompts_are_filled_up_as_the_family_does(
    pipelines, states, write, config, family, tmp_path
):
    folder, _ = pipelines(family)
    words = tmp_path / "words"
    words.mkdir()
    source = folder.with_name(folder.name + "_words")
    for name in ("vocab.json", "merges.txt"):
        (words / name).write_text((source / name).read_text())
    for place in (words, folder):
        c = config(write(states(family)), family, tokenizer=str(place))
        ids = make_tokenizer(c)(["an old man", ""])
        known = len(json.loads((words / "vocab.json").read_text()))
        assert ids[1, 0] == known - 2 and ids[1, 1] == known - 1
        assert set(ids[1, 2:]) == {0 if family == "2.1-v" else known - 1}


def test_the_tokenizer_comes_from_the_hubs_cache(
    pipelines, states, write, config, tmp_path, monkeypatch
):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    file = write(states("1.5"))
    c = config(file, tokenizer="")
    with pytest.raises(InputError, match=r"pretrained.tokenizer='': a single file has no token"):
        open_pipeline(c.pretrained)
    for name, source in (("openai/clip-vit-large-patch14", pipelines()[0] / "tokenizer"),):
        cache = tmp_path / f"models--{name.replace('/', '--')}"
        (cache / "snapshots" / "abc").mkdir(parents=True)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("abc")
        for part in source.iterdir():
            (cache / "snapshots" / "abc" / part.name).write_bytes(part.read_bytes())
    assert open_pipeline(c.pretrained).folders["tokenizer"].is_dir()
    (cache / "snapshots" / "abc" / "deep").mkdir()
    (cache / "snapshots" / "abc" / "deep" / "sd.safetensors").write_bytes(file.read_bytes())
    c.pretrained.model = "openai/clip-vit-large-patch14/deep/sd.safetensors"
    assert open_pipeline(c.pretrained).name == "openai/clip-vit-large-patch14/deep/sd.safetensors"
    c.pretrained.model = "openai/clip-vit-large-patch14/deep/other.safetensors"
    with pytest.raises(InputError, match="not in the hub's cache, and the hub can't be reached"):
        open_pipeline(c.pretrained)


def test_a_tokenizer_of_more_words_is_refused(pipelines, states, write, config):
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    state = states("1.5")
    few = state | {
        key: next(v for k, v in state.items() if k.endswith("token_embedding.weight"))[:99].clone()
    }
    with pytest.raises(InputError, match="it has 191 words, the text encoder knows 99"):
        open_pipeline(config(write(few)).pretrained)


def test_a_folder_of_one_file_says_so(states, write, config):
    file = write(states("1.5"))
    with pytest.raises(
        InputError, match="not a diffusers folder, and holds model.safetensors. Name"
    ):
        open_pipeline(config(file.parent).pretrained)


def test_diffusers_opens_what_is_exported(pipelines, states, write, config, tmp_path):
    _, reference = pipelines("2.1-v")
    method = make_method(config(write(states("2.1-v")), "2.1-v"))
    loaded = method.load(sharding.make_mesh(1, 1), frozen_only=False)
    method.write_pipeline(tmp_path / "out", loaded, {}, "float32")
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "out")
    for part in PARTS:
        ours, theirs = (getattr(p, part).state_dict() for p in (pipeline, reference))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), part
    assert pipeline.tokenizer.pad_token_id == 0
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.unet.config.attention_head_dim == [2, 4]
