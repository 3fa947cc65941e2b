"""Single-file checkpoints of Stable Diffusion 1.x and 2.x, of ControlNets and of autoencoders.

Their tensors have the names of the authors' own code (CompVis, Stability, lllyasviel). Here they
get diffusers' names, and what a config.json would say is read from their shapes.
"""

import contextlib
import itertools
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors

from cranio_jax import assets
from cranio_jax.diffusion import make_schedule
from cranio_jax.errors import InputError
from cranio_jax.pretrained.files import Tensor, open_weights
from cranio_jax.pretrained.load import current_tensors

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pth", ".pt", ".bin")
Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

# Where a file keeps each part; without a prefix it holds this part only.
_PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model."),
    "controlnet": ("control_model.",),
}
_BARE = {
    "vae": (r"(?:encoder|decoder|quant_conv|post_quant_conv)\.", "decoder.conv_in.weight"),
    "controlnet": ("", "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"),
}
_TITLES = {
    "unet": "a U-Net",
    "vae": "an autoencoder",
    "text_encoder": "a text encoder",
    "controlnet": "a ControlNet",
}
# Patterns of keys that show that a file is of another kind, in the order of the checks.
_OTHERS = (
    (r"joint_blocks\.", "Stable Diffusion 3"),
    (r"double_(?:stream_)?blocks\.|single_transformer_blocks\.", "Flux or a relative of it"),
    (r"^conditioner\.embedders\.", "Stable Diffusion XL"),
    (r"^lora_controlnet$", "a Control-LoRA"),
    (r"(?:^|_|\.)lora(?:_|\.)|hada_|lokr_", "a LoRA, which pretrained.lora takes"),
    (r"motion_modules\.", "AnimateDiff"),
    (r"noise_augmentor|^embedder\.", "Stable unCLIP"),
    (r"task_embedding|control_add_embedding", "a union of ControlNets"),
    (r"label_emb\.|add_embedding\.", "a network of Stable Diffusion XL, or of classes"),
    (r"^lllite_", "ControlLLLite"),
    (r"^(?:image_proj|ip_adapter)\.", "an IP-Adapter"),
    (r"^(?:adapter\.)?body\.\d+\.", "a T2I-Adapter"),
)
_INPUTS = {
    9: "an inpainting model",
    8: "InstructPix2Pix",
    7: "an upscaler",
    5: "a depth model",
}
# Modules whose objects torch files of training frameworks hold beside the weights.
_BYSTANDERS = ("pytorch_lightning", "lightning", "omegaconf", "numpy", "_codecs", "typing")


def find_file(where: str, revision: str = "") -> pathlib.Path | None:
    """Returns the weights file that `where` names; None if it names no file.

    It is a file here, or owner/name/file on the hub, fetched unless the cache has it. Raises
    InputError if the hub doesn't have it, or can't be reached.
    """
    path = assets.located(where)
    if path.is_file():
        return path
    if path.suffix not in SUFFIXES or path.is_dir():
        return None
    owner_name, file = "/".join(where.split("/")[:2]), "/".join(where.split("/")[2:])
    if not file or where.startswith((".", "/", "~")):
        raise InputError(f"{where}: no such file")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return pathlib.Path(
            huggingface_hub.hf_hub_download(owner_name, file, revision=revision or None)
        )
    except errors.LocalEntryNotFoundError:
        reason = "it is not in the hub's cache, and the hub can't be reached"
    except Exception as error:  # the class depends on the hub's version
        reason = f"the hub says {[*str(error).splitlines(), type(error).__name__][0]}"
    raise InputError(f"{where}: no such file here, and {reason}. Fetch it first.")


@contextlib.contextmanager
def open_file(path: pathlib.Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a weights file, as by `open_weights`.

    Objects of training frameworks beside the weights (Lightning's callbacks, say) are read as
    objects that do nothing; no code of theirs runs.
    """
    with contextlib.ExitStack() as stack:
        with _inert_bystanders(path):
            tensors = stack.enter_context(open_weights(path))
        yield tensors


def _inert_bystanders(path: pathlib.Path) -> contextlib.AbstractContextManager:
    """Returns a context in which torch reads objects of `_BYSTANDERS` as `_Inert`."""
    try:
        import torch

        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no torch, no torch file, or a damaged one: the reader says so
        return contextlib.nullcontext()
    stubs: list[Any] = [
        (type("Inert", (_Inert,), {}), name) for name in names if name.split(".")[0] in _BYSTANDERS
    ]
    return torch.serialization.safe_globals(stubs)


class _Inert:
    """Stands for an object whose class isn't wanted."""

    def __new__(cls, *args):
        return object.__new__(cls)

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


def metadata(path: pathlib.Path) -> dict[str, str]:
    """Returns the notes in a safetensors file's header; none for other files."""
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            return opened.metadata() or {}
    except (safetensors.SafetensorError, OSError):
        return {}


def check_kind(tensors: Tensors, what: str) -> None:
    """Raises InputError, saying what was found, for networks that are not implemented here."""
    for pattern, title in _OTHERS:
        for key in tensors:
            if re.search(pattern, key):
                raise InputError(_not_ours(what, title, repr(key)))
    first = tensors.get("model.diffusion_model.input_blocks.0.0.weight")
    if first is not None and len(first.shape) == 4 and first.shape[1] != 4:
        title = _INPUTS.get(first.shape[1], "another network")
        raise InputError(_not_ours(what, title, f"a U-Net with {first.shape[1]} input channels"))


def _not_ours(what: str, title: str, evidence: str) -> str:
    return (
        f"{what}: it holds {evidence}, so it is {title}. "
        "Use a file of Stable Diffusion 1.x or 2.x, or of a ControlNet or autoencoder for it."
    )


def read_part(tensors: Tensors, part: str, what: str) -> dict[str, Tensor]:
    """Returns a part of a file by diffusers' keys.

    Args:
      tensors: all that the file holds.
      part: 'unet', 'vae', 'text_encoder' or 'controlnet'.
      what: names the file in errors.

    Returns:
      Empty if the file doesn't hold the part. A key that isn't known is kept as it is.

    Raises:
      InputError: the file is of another family, or holds a ControlNet's difference.
    """
    check_kind(tensors, what)
    of_part, prefix = _under(tensors, part)
    if not of_part:
        return {}
    if part == "text_encoder":
        renamed = _open_clip(of_part) if prefix == "cond_stage_model.model." else of_part
    elif part == "vae":
        # Training saves a discriminator and averages too.
        of_part = {
            key: t for key, t in of_part.items() if not re.match(r"(?:loss|model_ema)\.", key)
        }
        renamed = _autoencoder(of_part)
    else:
        if part == "controlnet":
            _check_control(tensors, what)
        renamed = _renamed(of_part, _denoiser_places(of_part))
    return current_tensors(renamed, what)


def _under(tensors: Tensors, part: str) -> tuple[dict[str, Tensor], str]:
    """Returns the tensors of a part without their prefix, and the prefix."""
    for prefix in _PREFIXES[part]:
        under = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        if under:
            return under, prefix
    pattern, *probes = _BARE.get(part, ("",))
    if any(probe in tensors for probe in probes):
        return {key: t for key, t in tensors.items() if re.match(pattern, key)}, ""
    return {}, ""


def _check_control(tensors: Tensors, what: str) -> None:
    if "difference" in tensors:
        raise InputError(
            f"{what}: it holds the difference between a ControlNet and a U-Net, as its tensor "
            "'difference' says. Use the whole ControlNet."
        )
    if "shuffle" in what.lower():
        raise InputError(
            f"{what}: by its name it is the shuffle ControlNet, which pools its additions over "
            "the picture. That is not implemented. Use another ControlNet, or rename the file."
        )


def _renamed(tensors: Tensors, places: Mapping[str, str]) -> dict[str, Tensor]:
    return {_new_name(key, places): tensor for key, tensor in tensors.items()}


def _new_name(key: str, places: Mapping[str, str]) -> str:
    """Returns the key with its longest prefix that is a known module under its new name."""
    words = key.split(".")
    for count in range(len(words) - 1, 0, -1):
        place = places.get(".".join(words[:count]))
        if place is not None:
            return ".".join([place, *words[count:]])
    return key


def _denoiser_places(keys: Iterable[str]) -> dict[str, str]:
    """Returns where the modules of a U-Net or ControlNet in the authors' keys belong."""
    keys = list(keys)
    inputs = {int(m[1]) for k in keys if (m := re.match(r"input_blocks\.(\d+)\.", k))}
    if not inputs:
        return {}
    downs = {int(m[1]) for k in keys if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.", k))}
    edges = [0, *sorted(downs), max(inputs) + 1]
    places = module_places([b - a - 1 for a, b in itertools.pairwise(edges)])
    hints = {int(m[1]) for k in keys if (m := re.match(r"input_hint_block\.(\d+)\.", k))}
    for i, index in enumerate(sorted(hints)):
        name = "conv_in" if i == 0 else f"blocks.{i - 1}"
        name = "conv_out" if index == max(hints) else name
        places[f"input_hint_block.{index}"] = f"controlnet_cond_embedding.{name}"
    return places


def module_places(layers: list[int]) -> dict[str, str]:
    """Returns diffusers' names of a U-Net's and a ControlNet's modules by the authors' names.

    Args:
      layers: residual blocks at each resolution of the encoder; the decoder has one more.
    """
    places = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block_out.0": "controlnet_mid_block",
    }
    places |= _resnet("middle_block.0", "mid_block.resnets.0")
    places |= _resnet("middle_block.2", "mid_block.resnets.1")
    block = 1
    for level, count in enumerate(layers):
        for layer in range(count):
            places |= _resnet(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}")
            places[f"input_blocks.{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
            block += 1
        places[f"input_blocks.{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        block += 1
    places |= {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(block - 1)}
    block = 0
    for level, count in enumerate(reversed(layers)):
        for layer in range(count + 1):
            places |= _resnet(f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{layer}")
            places[f"output_blocks.{block}.1"] = f"up_blocks.{level}.attentions.{layer}"
            # After a transformer where there is one.
            for place in (1, 2):
                name = f"output_blocks.{block}.{place}.conv"
                places[name] = f"up_blocks.{level}.upsamplers.0.conv"
            block += 1
    return places


def _resnet(old: str, new: str) -> dict[str, str]:
    names = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    return {f"{old}.{a}": f"{new}.{b}" for a, b in names.items()}


def _autoencoder(tensors: Tensors) -> dict[str, Tensor]:
    """Returns an autoencoder's tensors by diffusers' keys; its attention becomes linear layers."""
    ups = {int(m[1]) for key in tensors if (m := re.match(r"decoder\.up\.(\d+)\.", key))}
    places = {}
    for side in ("encoder", "decoder"):
        places[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        for i in (1, 2):
            places[f"{side}.mid.block_{i}"] = f"{side}.mid_block.resnets.{i - 1}"
        for old, new in _AUTOENCODER_ATTENTION.items():
            places[f"{side}.mid.attn_1.{old}"] = f"{side}.mid_block.attentions.0.{new}"
    for key in tensors:
        if m := re.match(r"(encoder\.down|decoder\.up)\.(\d+)\.(block\.(\d+)|\w+sample)\.", key):
            down = m[1] == "encoder.down"
            level = m[2] if down else max(ups) - int(m[2])
            inner = f"resnets.{m[4]}" if m[4] else f"{'down' if down else 'up'}samplers.0"
            places[m[0].removesuffix(".")] = f"{m[1]}_blocks.{level}.{inner}"
    renamed = _renamed(tensors, places)
    renamed = {key.replace(".nin_shortcut.", ".conv_shortcut."): t for key, t in renamed.items()}
    return {key: _flat(t) if ".attentions." in key else t for key, t in renamed.items()}


_AUTOENCODER_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def _flat(tensor: Tensor) -> Tensor:
    """Returns a 1 x 1 convolution's weights as those of a linear layer."""
    if len(tensor.shape) < 3 or math.prod(tensor.shape[2:]) != 1:
        return tensor
    shape = tensor.shape[:2]
    return Tensor(shape, lambda: tensor.read().reshape(shape))


_OPEN_CLIP = (
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)


def _open_clip(tensors: Tensors) -> dict[str, Tensor]:
    """Returns OpenCLIP's text encoder by transformers' keys.

    Stable Diffusion 2 uses the output of its 23rd layer, so the 24th is left out.
    """
    renamed = {}
    for old, tensor in tensors.items():
        if re.match(r"text_projection$|logit_scale$|attn_mask$|transformer\.resblocks\.23\.", old):
            continue
        key = old
        for pattern, new in _OPEN_CLIP:
            key = re.sub(pattern, new, key)
        joint = re.fullmatch(r"(.+)\.in_proj_(weight|bias)", key)
        if not joint:
            renamed[key] = tensor
            continue
        for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
            renamed[f"{joint[1]}.{name}.{joint[2]}"] = _third(tensor, i)
    return renamed


def _third(tensor: Tensor, index: int) -> Tensor:
    """Returns the first, second or last third of a tensor's rows."""
    rows = tensor.shape[0] // 3

    def read() -> np.ndarray:
        return tensor.read()[index * rows : (index + 1) * rows]

    return Tensor((rows, *tensor.shape[1:]), read)


def read_settings_of(
    path: pathlib.Path, parts: Iterable[str], what: str
) -> dict[str, dict[str, Any]]:
    """Returns what config.json files would say of the parts that a file holds.

    A value is None where the file doesn't state it. With a U-Net come the scheduler's settings.

    Args:
      path: of the file; only names and shapes are read.
      parts: to look for.
      what: names the file in errors.

    Raises:
      InputError: the file is of another family, or a tensor is missing.
    """
    with open_file(path) as tensors:
        settings = settings_of(tensors, metadata(path), parts, what)
    if "vae" in settings and _is_of_xl(path):
        raise InputError(
            f"{what}: by its name or its notes it is the autoencoder of Stable Diffusion XL, "
            "whose latents differ. Use one of Stable Diffusion 1.x or 2.x."
        )
    return settings


def settings_of(
    tensors: Tensors, notes: Mapping[str, str], parts: Iterable[str], what: str
) -> dict[str, dict[str, Any]]:
    """Returns what `read_settings_of` does, from a file's tensors and its header's notes."""
    settings = {}
    for part in parts:
        of_part = read_part(tensors, part, what)
        if of_part:
            shapes = {key: tensor.shape for key, tensor in of_part.items()}
            settings[part] = _SETTINGS[part](_Known(shapes, f"{what}'s {part}"))
    if not settings:
        raise InputError(_missing(tensors, parts, what))
    if "text_encoder" in settings and is_open_clip(tensors):
        settings["text_encoder"]["hidden_act"] = "gelu"
    if "unet" in settings:
        settings["scheduler"] = _scheduler(tensors, notes, what)
    return settings


def is_open_clip(tensors: Iterable[str]) -> bool:
    """Returns True for the keys of a file with the text encoder of Stable Diffusion 2."""
    return any(key.startswith("cond_stage_model.model.") for key in tensors)


def _scheduler(tensors: Tensors, notes: Mapping[str, str], what: str) -> dict[str, Any]:
    """Returns the noise schedule's settings; the prediction type is None if nothing states it.

    Files of Stable Diffusion 2 predict velocity or noise and hold the same tensors.
    """
    note = notes.get("modelspec.prediction_type") or notes.get("modelspec.predict_key", "")
    if "v_pred" in tensors or note.startswith("v"):
        prediction = "v_prediction"
    elif note == "epsilon" or not is_open_clip(tensors):
        prediction = "epsilon"
    else:
        prediction = None
    settings = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": "ztsnr" in tensors,
        "steps_offset": 1,
        "set_alpha_to_one": False,
    }
    if "alphas_cumprod" not in tensors:
        return settings
    levels = np.asarray(tensors["alphas_cumprod"].read(), np.float64)
    for rescaled in (False, True):
        schedule = make_schedule(prediction_type="sample", rescale_betas_zero_snr=rescaled)
        usual = schedule.alphas_cumprod
        if levels.shape == usual.shape and np.allclose(levels, usual, rtol=1e-2, atol=1e-3):
            return settings | {
                "rescale_betas_zero_snr": settings["rescale_betas_zero_snr"] or rescaled
            }
    raise InputError(
        f"{what}: its noise levels (alphas_cumprod, {levels.size} of them) are not those of "
        "Stable Diffusion. Use a diffusers folder, whose scheduler defines them."
    )


def _missing(tensors: Tensors, parts: Iterable[str], what: str) -> str:
    if any(key.startswith("model_ema.") for key in tensors) and not _under(tensors, "unet")[0]:
        return (
            f"{what}: it holds only averaged weights (model_ema.), whose names don't show the "
            "layers. Use a file with model.diffusion_model."
        )
    present = [_TITLES[part] for part in _TITLES if _under(tensors, part)[0]]
    sought = ", ".join(_TITLES[part] for part in parts)
    some = repr(min(tensors, default=""))
    holds = " and ".join(present) or f"{len(tensors)} tensors, such as {some}"
    return f"{what}: it holds {holds}, expected {sought}. Name another file."


def _is_of_xl(path: pathlib.Path) -> bool:
    notes = metadata(path).get("modelspec.architecture", "")
    return "sdxl" in path.name.lower() or "stable-diffusion-xl" in notes


class _Known:
    """Shapes by key; InputError where one is missing."""

    def __init__(self, shapes: Shapes, what: str):
        self.shapes = shapes
        self._what = what

    def __getitem__(self, key: str) -> tuple[int, ...]:
        if key not in self.shapes:
            raise InputError(f"{self._what} lacks the tensor {key!r}. Fetch the file again.")
        return self.shapes[key]

    def count(self, before: str) -> int:
        """Returns how many numbers follow `before` in the keys."""
        pattern = re.compile(re.escape(before) + r"\.(\d+)\.")
        return len({m[1] for key in self.shapes if (m := pattern.match(key))})


def _unet_settings(known: _Known) -> dict[str, Any]:
    """Returns a U-Net's configuration by the shapes of its tensors."""
    levels = range(known.count("down_blocks"))
    widths = [known[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels]
    layers = [known.count(f"down_blocks.{i}.resnets") for i in levels]
    attends = [known.count(f"down_blocks.{i}.attentions") > 0 for i in levels]
    depths = [known.count(f"down_blocks.{i}.attentions.0.transformer_blocks") for i in levels]
    depths = [depth or 1 for depth in depths]
    linear = len(known["mid_block.attentions.0.proj_in.weight"]) == 2
    context = known["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1]
    down = ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends]
    up = ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)]
    return {
        "in_channels": known["conv_in.weight"][1],
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "cross_attention_dim": context,
        "use_linear_projection": linear,
        "attention_head_dim": _heads(widths, linear),
        "norm_num_groups": _groups(widths),
    }


def _heads(widths: list[int], linear: bool) -> int | list[int] | None:
    """Returns eight heads for 1.x; heads of 64 channels for 2.x; None if that doesn't fit."""
    if any(width % (64 if linear else 8) for width in widths):
        return None
    return [width // 64 for width in widths] if linear else 8


def _groups(widths: list[int]) -> int | None:
    return None if any(width % 32 for width in widths) else 32


def _decoding_unet_settings(known: _Known) -> dict[str, Any]:
    return _unet_settings(known) | {
        "out_channels": known["conv_out.weight"][0],
        "sample_size": 64,
    }


def _controlnet_settings(known: _Known) -> dict[str, Any]:
    embedding = "controlnet_cond_embedding"
    first = known[f"{embedding}.conv_in.weight"]
    blocks = range(known.count(f"{embedding}.blocks"))
    widths = [known[f"{embedding}.blocks.{i}.weight"][0] for i in blocks]
    # Settings that shapes don't show are those of the U-Net that it copies.
    settings = _unet_settings(known)
    for field in ("up_block_types", "attention_head_dim", "norm_num_groups"):
        del settings[field]
    return settings | {
        "conditioning_channels": first[1],
        "conditioning_embedding_out_channels": [first[0], *widths[1::2]],
    }


def _autoencoder_settings(known: _Known) -> dict[str, Any]:
    levels = range(known.count("encoder.down_blocks"))
    widths = [known[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels]
    return {
        "in_channels": known["encoder.conv_in.weight"][1],
        "out_channels": known["decoder.conv_out.weight"][0],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": known.count("encoder.down_blocks.0.resnets"),
        "latent_channels": known["post_quant_conv.weight"][0],
        "norm_num_groups": _groups(widths),
        "scaling_factor": 0.18215,
    }


def _text_settings(known: _Known) -> dict[str, Any]:
    words, width = known["embeddings.token_embedding.weight"]
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": known["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": known.count("encoder.layers"),
        "num_attention_heads": None if width % 64 else width // 64,
        "max_position_embeddings": known["embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
    }


_SETTINGS = {
    "unet": _decoding_unet_settings,
    "controlnet": _controlnet_settings,
    "vae": _autoencoder_settings,
    "text_encoder": _text_settings,
}
