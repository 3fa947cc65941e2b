"""diffusers' parts under the names of the authors' own code, written apart from what reads them."""

import re

import torch

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
}


def denoiser_key(key, layers, attends, hints=0):
    """The LDM key of a U-Net's or ControlNet's tensor.

    `layers` residual blocks a level; `attends` says which of the decoder's levels have attention;
    `hints` is the number of the hint encoder's middle layers.
    """
    for new, old in _TOP.items():
        if key.startswith(new + "."):
            return old + key[len(new) :]
    stem, leaf = key.rsplit(".", 1)
    if m := re.fullmatch(r"controlnet_down_blocks\.(\d+)", stem):
        return f"zero_convs.{m[1]}.0.{leaf}"
    if m := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)", stem):
        return f"input_hint_block.{2 * int(m[1]) + 2}.{leaf}"
    if stem == "controlnet_cond_embedding.conv_out":
        return f"input_hint_block.{2 * hints + 2}.{leaf}"
    if m := re.fullmatch(r"mid_block\.resnets\.(\d)\.(\w+)", stem):
        return f"middle_block.{2 * int(m[1])}.{_RESNET[m[2]]}.{leaf}"
    side, level, kind, index, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key
    ).groups()
    level, index = int(level), int(index)
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{leaf}"
    if kind == "upsamplers":
        block = (level + 1) * (layers + 1) - 1
        return f"output_blocks.{block}.{2 if attends[level] else 1}.conv.{leaf}"
    name = "input_blocks" if side == "down" else "output_blocks"
    block = level * (layers + 1) + index + (side == "down")
    if kind == "attentions":
        return f"{name}.{block}.1.{rest}"
    return f"{name}.{block}.0.{_RESNET[rest.rsplit('.', 1)[0]]}.{leaf}"


def denoiser_state(model):
    """A U-Net's or ControlNet's state dictionary under LDM's keys."""
    config, state = model.config, model.state_dict()
    attends = ["CrossAttn" in kind for kind in reversed(config.down_block_types)]
    hints = 2 * len(config.get("conditioning_embedding_out_channels") or [1]) - 2
    return {
        denoiser_key(key, config.layers_per_block, attends, hints): value
        for key, value in state.items()
    }


def vae_state(model):
    """An autoencoder's state dictionary under LDM's keys, its attention as 1 x 1 convolutions."""
    last = len(model.config.block_out_channels) - 1
    attention = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    found = {}
    for key, value in model.state_dict().items():
        key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        for i in (0, 1):
            key = key.replace(f"mid_block.resnets.{i}", f"mid.block_{i + 1}")
        key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        for new, old in attention.items():
            if f"mid.attn_1.{new}." in key:
                key = key.replace(f".{new}.", f".{old}.")
                value = value[:, :, None, None] if key.endswith("weight") else value
        if m := re.match(r"(en|de)coder\.(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key):
            level = int(m[3]) if m[2] == "down" else last - int(m[3])
            inner = f"block.{m[5]}" if m[4] == "resnets" else f"{m[2]}sample"
            key = f"{m[1]}coder.{m[2]}.{level}.{inner}.{m[6]}"
        found[key] = value
    return found


def clip_state(model):
    """A text encoder's state dictionary under the keys of Stable Diffusion 1."""
    return {
        f"transformer.text_model.{key.removeprefix('text_model.')}": value
        for key, value in model.state_dict().items()
    }


def open_clip_state(model):
    """A text encoder's state dictionary under OpenCLIP's keys, with what else those files hold."""
    found, projections = {}, {}
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for key, value in model.state_dict().items():
        key = key.removeprefix("text_model.")
        if key.startswith("embeddings.token"):
            found["token_embedding.weight"] = value
        elif key.endswith("position_embedding.weight"):
            found["positional_embedding"] = value
        elif key.startswith("final_layer_norm"):
            found[key.replace("final_layer_norm", "ln_final")] = value
        elif m := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(\w+)", key):
            projections.setdefault((m[1], m[2]), []).append((key, value))
        elif m := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(\w+)", key):
            found[f"transformer.resblocks.{m[1]}.{names[m[2]]}.{m[3]}"] = value
    for (layer, leaf), pairs in projections.items():
        by_name = {key.rsplit(".", 2)[1]: value for key, value in pairs}
        joint = torch.cat([by_name[f"{letter}_proj"] for letter in "qkv"])
        found[f"transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = joint
    width = model.config.hidden_size
    found["text_projection"] = torch.eye(width)
    found["logit_scale"] = torch.tensor(4.6)
    found["transformer.resblocks.23.ln_1.weight"] = torch.ones(width)
    found["transformer.resblocks.23.attn.in_proj_weight"] = torch.ones(3 * width, width)
    return found


def state(parts):
    """The state dictionary of a whole checkpoint; `parts` has `unet`, `vae` and `text_encoder`."""
    second = parts["text_encoder"].config.hidden_act == "gelu"
    text = open_clip_state if second else clip_state
    prefix = "cond_stage_model.model." if second else "cond_stage_model."
    found = {}
    for before, part in (
        ("model.diffusion_model.", denoiser_state(parts["unet"])),
        ("first_stage_model.", vae_state(parts["vae"])),
        (prefix, text(parts["text_encoder"])),
    ):
        found |= {before + key: value.contiguous() for key, value in part.items()}
    return found
