"""LoRA files of all writers, against diffusers' `load_lora_weights` and `fuse_lora`."""

import copy
import json
import re

import diffusers
import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.pretrained import open_pipeline

UNET = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
)
MORE = (
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.attentions.0.proj_in",
    "down_blocks.1.resnets.0.conv1",
    "down_blocks.1.resnets.0.time_emb_proj",
    "down_blocks.1.resnets.0.conv_shortcut",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.0.upsamplers.0.conv",
)
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj")
MLP = ("encoder.layers.1.mlp.fc1",)
RANK = 2


def factors(weight, rank, seed):
    """Random `(down, up)` for a layer of torch's weights."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *weight.shape[1:], generator=generator)
    up = torch.randn(weight.shape[0], rank, *(1 for _ in weight.shape[2:]), generator=generator)
    return down / down[0].numel() ** 0.5, up / rank


def additions(reference, unet, text, rank=RANK):
    """`(part, layer) -> (down, up)` with random values."""
    layers = [("unet", layer) for layer in unet] + [("text_encoder", layer) for layer in text]
    found = {}
    for i, (part, layer) in enumerate(layers):
        weight = getattr(reference, part).get_submodule(layer).weight
        found[part, layer] = factors(weight, rank + i % 2 if rank == RANK else rank, i)
    return found


def peft(found):
    state = {}
    for (part, layer), (down, up) in found.items():
        layer = layer if part == "unet" else f"text_model.{layer}"
        state[f"{part}.{layer}.lora_A.weight"] = down
        state[f"{part}.{layer}.lora_B.weight"] = up
    return state


def newer(found):
    """Of diffusers before it used peft."""
    state = {}
    for (part, layer), (down, up) in found.items():
        name = (
            f"unet.{layer}.lora"
            if part == "unet"
            else f"{part}.text_model.{layer}.lora_linear_layer"
        )
        state |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return state


def oldest(found):
    """Of diffusers' attention processors."""
    state, text = {}, {"q_proj": "to_q", "out_proj": "to_out"}
    for (part, layer), (down, up) in found.items():
        stem, leaf = layer.removesuffix(".0").rsplit(".", 1)
        between = "processor." if part == "unet" else ""
        stem = f"unet.{stem}" if part == "unet" else f"text_encoder.text_model.{stem}"
        name = f"{stem}.{between}{text.get(leaf, leaf)}_lora"
        state |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return state


def kohya(found, alpha=1.5):
    state = {}
    for (part, layer), (down, up) in found.items():
        before = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        name = before + layer.replace(".", "_")
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


LDM = {
    "lora_unet_down_blocks_0_attentions_0": "lora_unet_input_blocks_1_1",
    "lora_unet_up_blocks_1_attentions_1": "lora_unet_output_blocks_3_1",
    "lora_unet_mid_block_attentions_0": "lora_unet_middle_block_1",
    "lora_unet_down_blocks_1_resnets_0_conv1": "lora_unet_input_blocks_3_0_in_layers_2",
}


def authors(found):
    """kohya's keys over the authors' names of the blocks, as for XL."""
    state = kohya(found)
    for new, old in LDM.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    assert not any("down_blocks" in key or "up_blocks" in key for key in state)
    return state


def fused(reference, state, scale):
    """State dictionaries of the U-Net and text encoder after diffusers has merged a file."""
    parts = dict(reference.components)
    parts = {k: copy.deepcopy(v) if k in ("unet", "text_encoder") else v for k, v in parts.items()}
    parts.pop("image_encoder", None)
    pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    pipeline.load_lora_weights(state, unet_config=pipeline.unet.config)
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
    return {part: getattr(pipeline, part).state_dict() for part in ("unet", "text_encoder")}


def read(config, part):
    with open_pipeline(config.pretrained).open(part) as tensors:
        found = {key: np.asarray(tensor.read()) for key, tensor in tensors.items()}
    return {re.sub(r"^text_model\.", "", key): value for key, value in found.items()}


def agrees(config, wanted, reference):
    """Returns how many tensors LoRA changed."""
    changed = 0
    for part, state in wanted.items():
        found, before = read(config, part), getattr(reference, part).state_dict()
        state = {key.removeprefix("text_model."): v.numpy() for key, v in state.items()}
        assert found.keys() == state.keys()
        for key, value in state.items():
            np.testing.assert_allclose(found[key], value, atol=2e-6, err_msg=key)
        before = {key.removeprefix("text_model."): v.numpy() for key, v in before.items()}
        changed += sum(not np.array_equal(value, before[key]) for key, value in found.items())
    return changed


WRITERS = {
    "peft": (peft, UNET + MORE, TEXT + MLP),
    "newer": (newer, UNET + MORE, TEXT + MLP),
    "oldest": (oldest, UNET, TEXT),
    "kohya": (kohya, UNET + MORE, TEXT + MLP),
    "authors": (authors, (*UNET, "down_blocks.1.resnets.0.conv1"), TEXT),
}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("writer", WRITERS)
def test_merged_as_by_diffusers(pipelines, settings, tmp_path, writer, suffix):
    folder, reference = pipelines()
    write, unet, text = WRITERS[writer]
    state = write(additions(reference, unet, text))
    c = settings(folder)
    c.pretrained.update(lora=str(tmp_path / f"style.{suffix}"), lora_scale=0.7)
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    save(state, c.pretrained.lora)
    wanted = fused(reference, state, 0.7)
    assert agrees(c, wanted, reference) == len(unet) + len(text)


def test_strength_from_the_header(pipelines, settings, tmp_path):
    folder, reference = pipelines()
    c = settings(folder)
    found = additions(reference, UNET, TEXT, rank=4)
    notes = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2}}
    notes |= {"unet.rank_pattern": {}, "unet.target_modules": [layer for layer in UNET]}
    notes |= {"text_encoder.r": 4, "text_encoder.lora_alpha": 1, "text_encoder.use_rslora": True}
    notes["text_encoder.target_modules"] = ["q_proj", "out_proj"]
    c.pretrained.lora = str(tmp_path / "pytorch_lora_weights.safetensors")
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(notes)}
    safetensors.torch.save_file(peft(found), c.pretrained.lora, header)
    plain, strength = reference.unet.state_dict(), {layer: 2.0 for layer in UNET} | {UNET[0]: 0.5}
    merged = read(c, "unet")
    for layer in UNET:
        down, up = found["unet", layer]
        wanted = plain[f"{layer}.weight"] + strength[layer] * up @ down
        np.testing.assert_allclose(merged[f"{layer}.weight"], wanted.numpy(), atol=1e-6)
    agrees(c, {"unet": fused(reference, c.pretrained.lora, 1.0)["unet"]}, reference)
    plain, merged = reference.text_encoder.state_dict(), read(c, "text_encoder")
    for layer in TEXT:
        down, up = found["text_encoder", layer]
        wanted = plain[f"{layer}.weight"] + 0.5 * up @ down
        np.testing.assert_allclose(merged[f"{layer}.weight"], wanted.numpy(), atol=1e-6)


def test_two_files_integers_halves_and_cores(pipelines, settings, tmp_path):
    folder, reference = pipelines()
    layer = "down_blocks.1.resnets.0.conv1"
    weight = reference.unet.get_submodule(layer).weight.detach()
    one = kohya(additions(reference, UNET, ()), alpha=1)  # an integer, as kohya's default is
    assert one[f"lora_unet_{UNET[0].replace('.', '_')}.alpha"].dtype == torch.int64
    one = {key: v.half() if v.ndim else v for key, v in one.items()}
    down, mid, up = torch.randn(3, 16, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(32, 3, 1, 1)
    name = f"lora_unet_{layer.replace('.', '_')}"
    two = {"down": down, "mid": mid, "up": up}
    two = {f"{name}.lora_{role}.weight": value for role, value in two.items()}
    for number, state in (("a", one), ("b", two)):
        safetensors.torch.save_file(state, tmp_path / f"{number}.safetensors")
    c = settings(folder)
    c.pretrained.update(lora=f"{tmp_path}/a.safetensors, {tmp_path}/b.safetensors", lora_scale=0.1)
    merged = read(c, "unet")
    picture = torch.randn(1, 16, 5, 5)
    convolve = torch.nn.functional.conv2d
    wanted = convolve(picture, weight, padding=1)
    wanted += 0.1 * convolve(convolve(convolve(picture, down), mid, padding=1), up)
    got = convolve(picture, torch.from_numpy(merged[f"{layer}.weight"]), padding=1)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    down, up = (
        one[f"lora_unet_{UNET[0].replace('.', '_')}.lora_{r}.weight"] for r in ("down", "up")
    )
    plain = reference.unet.state_dict()[f"{UNET[0]}.weight"]
    wanted = plain + 0.1 / down.shape[0] * up.float() @ down.float()
    np.testing.assert_allclose(merged[f"{UNET[0]}.weight"], wanted, atol=1e-6)
    method = make_method(c)
    assert {"lora", "lora 2"} <= method.weight_hashes().keys()


KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
REFUSED = {
    "loha": ({f"{KOHYA}.hada_w1_a": torch.ones(2, 2)}, "so it is LoHa"),
    "lokr": ({f"{KOHYA}.lokr_w1": torch.ones(2, 2)}, "so it is LoKr"),
    "dora": ({f"{KOHYA}.dora_scale": torch.ones(2, 1)}, "so it is DoRA"),
    "dora, peft": ({f"unet.{UNET[0]}.lora_magnitude_vector": torch.ones(2)}, "so it is DoRA"),
    "difference": ({f"{KOHYA}.diff": torch.ones(2, 2)}, "whole differences"),
    "ia3": ({f"{KOHYA}.on_input": torch.ones(1)}, "so it is IA3"),
    "oft": ({f"{KOHYA}.oft_blocks": torch.ones(1)}, "so it is OFT"),
    "xl": ({"lora_te2_text_model_a.lora_up.weight": torch.ones(2, 2)}, "Diffusion XL"),
    "flux": ({"transformer.x.lora_A.weight": torch.ones(2, 2)}, "Flux"),
    "peft's own": ({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, "peft's own file"),
    "biases": ({f"unet.{UNET[0]}.lora_B.bias": torch.ones(2)}, "LoRA with biases"),
    "layer": ({f"{KOHYA[:-1]}x.alpha": torch.ones(())}, r"attn1_to_x.alpha' fits no layer"),
    "deep": ({"unet.down_blocks.7.x.lora_A.weight": torch.ones(2, 2)}, "fits no layer"),
    "word": ({"emb_params": torch.ones(2, 2)}, "textual inversion"),
    "unknown": ({"abc": torch.ones(2, 2)}, "the tensor 'abc' fits no layer"),
    "lonely": (
        {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3)},
        "no 'up' factor beside it",
    ),
    "wide": (
        {
            "lora_unet_conv_out.lora_down.weight": torch.ones(2, 99, 3, 3),
            "lora_unet_conv_out.lora_up.weight": torch.ones(4, 2, 1, 1),
        },
        r"\(2, 99, 3, 3\) and .* don't fit the layer 'conv_out.weight'",
    ),
    "twice": (
        {f"unet.{UNET[0]}.lora_A.weight": torch.ones(2, 16)},
        "which mean the same",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_else_a_file_adds_is_refused(pipelines, settings, tmp_path, kind):
    folder, reference = pipelines()
    c = settings(folder)
    c.pretrained.lora = str(tmp_path / "style.safetensors")
    fine = kohya(additions(reference, UNET, TEXT))
    more, message = REFUSED[kind]
    safetensors.torch.save_file(fine | more, c.pretrained.lora)
    with pytest.raises(InputError, match=f"pretrained.lora=style.safetensors: .*{message}"):
        open_pipeline(c.pretrained)
    safetensors.torch.save_file(fine, tmp_path / "fine.safetensors")
    c.pretrained.lora = str(tmp_path / "fine.safetensors")
    assert open_pipeline(c.pretrained).loras


def test_settings(pipelines, settings, tmp_path):
    folder, _ = pipelines()
    c = settings(folder)
    for lora, scale, message in (
        (str(tmp_path), 1.0, "the folder holds no pytorch_lora_weights.safetensors"),
        (str(tmp_path / "no.safetensors"), 1.0, "no.safetensors: no such file"),
        ("", float("nan"), "lora_scale=nan: it is not finite"),
    ):
        c.pretrained.update(lora=lora, lora_scale=scale)
        with pytest.raises(InputError, match=message):
            open_pipeline(c.pretrained)
    c.pretrained.update(model="", lora="x", lora_scale=1.0)
    with pytest.raises(InputError, match="pretrained.lora is set, but pretrained.model is not"):
        open_pipeline(c.pretrained)


@pytest.fixture
def started(pipelines, settings, tmp_path):
    """`(rank of the file, trained rank, layers of the text encoder) -> (method, config, file)`."""
    folder, reference = pipelines()
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    targets = [n for n, _ in reference.unet.named_modules() if ".attn" in n and n.endswith(ends)]

    def make(rank, trained, text=(), count=None):
        c = settings(folder)
        found = additions(reference, targets[:count], text, rank=rank)
        c.pretrained.update(lora=str(tmp_path), lora_scale=0.5)
        safetensors.torch.save_file(kohya(found), tmp_path / "pytorch_lora_weights.safetensors")
        c.method.update(trained=("controlnet", "unet_lora"), lora_rank=trained)
        return make_method(c), c, found

    return make


def state_of(method):
    loaded = method.load(sharding.make_mesh(1, 1), frozen_only=False)
    return jax.device_get(jax.jit(method.init)(jax.random.key(0), loaded))


def test_training_starts_from_a_lora_that_fits(started, pipelines):
    method, c, found = started(4, 4, TEXT)
    state, frozen = state_of(method)
    plain = pipelines()[1].unet.state_dict()
    for (part, layer), (down, up) in found.items():
        if part == "unet":
            a, b = (state["params"]["unet_lora"][f"{layer}.lora_{x}.kernel"] for x in "AB")
            np.testing.assert_allclose(a, down.T.numpy())
            np.testing.assert_allclose(a @ b, 0.5 * 1.5 / 4 * (up @ down).T.numpy(), atol=1e-6)
            np.testing.assert_array_equal(
                frozen["unet"][f"{layer}.kernel"], plain[f"{layer}.weight"].T
            )
    # The text encoder's part is merged, and what is kept of prompts knows.
    before = pipelines()[1].text_encoder.state_dict()
    key = TEXT[0]
    assert (
        np.abs(frozen["text_encoder"][f"{key}.kernel"].T - before[f"{key}.weight"].numpy()).max()
        > 0.01
    )
    ours = method.encodable()["context"]["weights"]
    c.pretrained.lora_scale = 0.25
    assert make_method(c).encodable()["context"]["weights"] != ours
    c.pretrained.lora = ""
    assert make_method(c).encodable()["context"]["weights"] != ours


@pytest.mark.parametrize(("rank", "trained", "count"), [(3, 4, None), (4, 4, 5)])
def test_another_lora_is_merged(started, pipelines, rank, trained, count):
    method, _, found = started(rank, trained, count=count)
    loaded = jax.device_get(method.load(sharding.make_mesh(1, 1), frozen_only=False))["unet"]
    plain = pipelines()[1].unet.state_dict()
    for (_, layer), (down, up) in found.items():
        wanted = plain[f"{layer}.weight"] + 0.5 * 1.5 / rank * up @ down
        np.testing.assert_allclose(loaded[f"{layer}.kernel"].T, wanted.numpy(), atol=1e-6)
    assert not any("lora" in path for path in loaded)  # the trained one starts at zero
