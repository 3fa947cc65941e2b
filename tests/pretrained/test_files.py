"""Weights in every form in which they are published, and in none."""

import fnmatch
import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from cranio_jax import pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.pretrained import open_pipeline

PARTS = ("unet", "controlnet", "vae", "text_encoder")


def weights_of(folder, settings, **changes):
    method = make_method(settings(folder, **changes))
    return jax.device_get(method.load(sharding.make_mesh(1, 1), frozen_only=False))


def file_of(folder, part):
    return (
        folder
        / part
        / ("model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors")
    )


@pytest.fixture
def copy(pipelines, tmp_path):
    """A pipeline folder to spoil."""
    return shutil.copytree(pipelines()[0], tmp_path / "sd")


@pytest.fixture
def wanted(pipelines, settings):
    return weights_of(pipelines()[0], settings)


def rewrite(folder, part, change):
    file = file_of(folder, part)
    tensors = safetensors.numpy.load_file(file)
    file.unlink()
    change(file, tensors)


def older_names(file, tensors):
    """Keys as the first published files have them."""
    turns = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    old = {}
    for key, value in tensors.items():
        if "mid_block.attentions.0" in key and file.parent.name == "vae":
            for new, before in turns:
                key = key.replace(new, before)
            if value.ndim == 2:
                value = value[:, :, None, None]
        old["text_model." + key if file.parent.name == "text_encoder" else key] = value
    assert old.keys() != tensors.keys() or file.parent.name in ("unet", "controlnet")
    if file.parent.name == "text_encoder":
        old["text_model.embeddings.position_ids"] = np.arange(16)[None]
    safetensors.numpy.save_file(old, file)


def in_shards(file, tensors):
    stem, keys = file.name.split(".")[0], sorted(tensors)
    place = {key: f"{stem}-0000{i % 2 + 1}-of-00002.safetensors" for i, key in enumerate(keys)}
    for name in set(place.values()):
        safetensors.numpy.save_file(
            {key: tensors[key] for key in keys if place[key] == name}, file.with_name(name)
        )
    file.with_name(file.name + ".index.json").write_text(json.dumps({"weight_map": place}))


def torch_file(file, tensors):
    name = (
        "pytorch_model.bin" if file.parent.name == "text_encoder" else "diffusion_pytorch_model.bin"
    )
    torch.save(
        {key: torch.from_numpy(value) for key, value in tensors.items()}, file.with_name(name)
    )


def half(file, tensors):
    tensors = {key: value.astype(np.float16) for key, value in tensors.items()}
    safetensors.numpy.save_file(
        tensors, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors"))
    )


def older_torch_file(file, tensors):
    name = (
        "pytorch_model.bin" if file.parent.name == "text_encoder" else "diffusion_pytorch_model.bin"
    )
    state = {key: torch.from_numpy(value) for key, value in tensors.items()}
    torch.save(state, file.with_name(name), _use_new_zipfile_serialization=False)


def wrapped(file, tensors):
    safetensors.numpy.save_file({f"module._orig_mod.{k}": v for k, v in tensors.items()}, file)


def with_projection(file, tensors):
    """A text encoder of CLIPTextModelWithProjection."""
    if file.parent.name == "text_encoder":
        prefix = "" if any(key.startswith("text_model.") for key in tensors) else "text_model."
        tensors = {prefix + key: value for key, value in tensors.items()}
        tensors["text_projection.weight"] = np.ones((32, 32), np.float32)
    safetensors.numpy.save_file(tensors, file)


def half_in_shards(file, tensors):
    """As transformers and, for other parts, as diffusers name them."""
    stem, keys = file.name.split(".")[0], sorted(tensors)
    place = {key: f"{stem}.fp16-0000{i % 2 + 1}-of-00002.safetensors" for i, key in enumerate(keys)}
    for name in set(place.values()):
        own = {key: tensors[key].astype(np.float16) for key in keys if place[key] == name}
        safetensors.numpy.save_file(own, file.with_name(name))
    between = "index.fp16.json" if file.parent.name == "vae" else "fp16.index.json"
    file.with_name(f"{stem}.safetensors.{between}").write_text(json.dumps({"weight_map": place}))


@pytest.mark.parametrize(
    "form",
    [
        older_names,
        in_shards,
        torch_file,
        older_torch_file,
        half,
        half_in_shards,
        wrapped,
        with_projection,
    ],
)
def test_every_published_form_loads(copy, settings, wanted, form):
    for part in PARTS:
        rewrite(copy, part, form)
    found = weights_of(copy, settings)
    if form in (half, half_in_shards):
        wanted = jax.tree.map(lambda a: a.astype(np.float16).astype(np.float32), wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_small_types_load_as_in_torch(copy, settings, wanted, dtype):
    kind = getattr(torch, dtype)
    for part in PARTS:

        def small(file, tensors, variant="bf16" if dtype == "bfloat16" else "fp8_e4m3fn"):
            state = {key: torch.from_numpy(value).to(kind) for key, value in tensors.items()}
            file = file.with_name(file.name.replace(".safetensors", f".{variant}.safetensors"))
            safetensors.torch.save_file(state, file)

        rewrite(copy, part, small)
    found = weights_of(copy, settings)
    rounded = jax.tree.map(lambda a: torch.from_numpy(np.array(a)).to(kind).float().numpy(), wanted)
    jax.tree.map(np.testing.assert_array_equal, found, rounded)


def test_the_first_pipelines_tokenizer(copy, pipelines):
    """vocab.json and merges.txt alone, as transformers' CLIPTokenizer reads them."""
    reference, text = pipelines()[1].tokenizer, ["Portrait of an old man, 65 years", ""]
    words, folder = copy.with_name("words"), copy / "tokenizer"
    source = pipelines()[0].with_name(pipelines()[0].name + "_words")
    shutil.copytree(source, words)
    whole = shutil.copytree(folder, copy.with_name("whole"))
    (whole / "tokenizer_config.json").unlink()
    for place in (words, whole, folder):
        found = pretrained.open_tokenizer(place)
        assert found(text)["input_ids"] == reference(text)["input_ids"]
        assert found.pad_token_id == reference.pad_token_id
    shutil.rmtree(folder)
    shutil.copytree(words, folder)
    assert open_pipeline(settings_of(copy)).folders["tokenizer"] == folder
    (words / "merges.txt").unlink()
    with pytest.raises(InputError, match="holds no vocabulary; expected vocab.json and merges.txt"):
        pretrained.open_tokenizer(words)
    (whole / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="whole: the tokenizer can't be read"):
        pretrained.open_tokenizer(whole)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    with pytest.raises(InputError, match="holds a XLMRobertaTokenizer; expected CLIP's"):
        pretrained.open_tokenizer(folder)


def settings_of(folder):
    return ml_collections.ConfigDict(dict(model=str(folder), controlnet="", revision=""))


def test_lists_and_numbers_agree(copy, settings, wanted):
    """A U-Net's config.json with an entry for each block, a ControlNet's with one for all."""
    lists = dict(layers_per_block=[1, 1], cross_attention_dim=[32, 32], attention_head_dim=[8, 8])
    lists |= dict(only_cross_attention=[False, False], transformer_layers_per_block=[1, 1])
    edit(copy / "unet" / "config.json", lambda c: c.update(lists))
    jax.tree.map(np.testing.assert_array_equal, weights_of(copy, settings), wanted)


def test_full_precision_is_preferred(copy, settings, wanted):
    shutil.copy(file_of(copy, "vae"), copy / "full")
    rewrite(copy, "vae", half)
    shutil.move(copy / "full", file_of(copy, "vae"))
    jax.tree.map(np.testing.assert_array_equal, weights_of(copy, settings), wanted)


def test_frozen_weights_are_kept_in_the_compute_type(copy, settings):
    found = weights_of(copy, settings, compute_dtype="bfloat16")
    types = {part: {str(v.dtype) for v in params.values()} for part, params in found.items()}
    assert types == {
        "controlnet": {"float32"},
        "unet": {"bfloat16"},
        "vae": {"bfloat16"},
        "text_encoder": {"bfloat16"},
    }


def test_controlnet_grows_from_the_unet(pipelines, tmp_path, settings):
    folder = shutil.copytree(pipelines()[0], tmp_path / "sd")
    shutil.rmtree(folder / "controlnet")
    index = json.loads((folder / "model_index.json").read_text())
    del index["controlnet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    method = make_method(settings(folder))
    loaded = method.load(sharding.make_mesh(1, 1), frozen_only=False)
    state, frozen = method.init(jax.random.key(0), loaded)
    control, unet = state["params"]["controlnet"], frozen["unet"]
    shared = control.keys() & unet.keys()
    assert {
        "conv_in.kernel",
        "mid_block.resnets.0.conv1.kernel",
        "time_embedding.linear_1.kernel",
    } <= shared
    for path in shared:
        np.testing.assert_array_equal(control[path], unet[path])
    for path in control.keys() - shared:
        assert path.startswith("controlnet_"), path
        if "cond_embedding" not in path:
            assert not np.any(control[path]), path


def test_hub_cache_without_network(copy, settings, wanted, tmp_path, monkeypatch):
    """The layout of the hub's own cache; no network is tried."""
    cache = tmp_path / "hub" / "models--owner--sd"
    shutil.copytree(copy, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    jax.tree.map(np.testing.assert_array_equal, weights_of("owner/sd", settings), wanted)
    with pytest.raises(
        InputError,
        match="owner/other: not a folder here, not in the hub's cache, and the hub can't be",
    ):
        weights_of("owner/other", settings)


def test_one_format_of_a_repository_is_fetched(copy, settings, wanted, tmp_path, monkeypatch):
    """A hub that lists a repository's files and copies those that a pattern asks for."""
    import huggingface_hub

    fp16, bin_file = (
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
    )
    others = (
        fp16,
        bin_file,
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/model.onnx",
        "text_encoder/model.fp16.safetensors",
    )
    others += (
        "v1-5-pruned.ckpt",
        "v1-5-pruned-emaonly.safetensors",
        "README.md",
        "safety_checker/model.safetensors",
    )
    files = [str(f.relative_to(copy)) for f in copy.rglob("*") if f.is_file()] + list(others)
    asked = []

    def fetch(name, revision, allow_patterns, local_files_only):
        asked.append((name, revision, local_files_only))
        for file in files:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / "hub" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(
                    copy / file, tmp_path / "hub" / file
                )  # one that is not wanted is not there to copy
        return str(tmp_path / "hub")

    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, name, revision: files
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    config = settings("owner/published")
    config.pretrained.revision = "v2"
    method = make_method(config)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(method.load(sharding.make_mesh(1, 1), frozen_only=False)),
        wanted,
    )
    assert asked == [("owner/published", "v2", False)]
    assert not [f for f in others if (tmp_path / "hub" / f).exists()]


def test_the_content_of_weights_is_known_to_the_cache(copy, settings):
    before = make_method(settings(copy)).encodable()
    assert str(copy) not in json.dumps(before)
    rewrite(
        copy,
        "vae",
        lambda file, tensors: safetensors.numpy.save_file(
            {k: np.nextafter(v, 9) for k, v in tensors.items()}, file
        ),
    )
    after = make_method(settings(copy)).encodable()
    assert before["latents"] != after["latents"] and before["context"] == after["context"]


def test_a_controlnet_of_its_own_folder(copy, settings, wanted, tmp_path):
    alone = tmp_path / "control"
    shutil.move(copy / "controlnet", alone)
    edit(copy / "model_index.json", lambda index: index.pop("controlnet"))
    rewrite(
        tmp_path,
        "control",
        lambda file, tensors: safetensors.numpy.save_file(
            {k: 2 * v for k, v in tensors.items()}, file
        ),
    )
    config = settings(copy)
    config.pretrained.controlnet = str(alone)
    found = jax.device_get(make_method(config).load(sharding.make_mesh(1, 1), frozen_only=False))
    for path, value in wanted["controlnet"].items():
        np.testing.assert_array_equal(found["controlnet"][path], 2 * value)
    jax.tree.map(np.testing.assert_array_equal, found["unet"], wanted["unet"])


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def without(key):
    return lambda file, tensors: safetensors.numpy.save_file(
        {k: v for k, v in tensors.items() if k != key}, file
    )


def with_more(file, tensors):
    safetensors.numpy.save_file(tensors | {"conv_in.spare": np.zeros(2)}, file)


def widened(file, tensors):
    safetensors.numpy.save_file(tensors | {"conv_in.weight": np.zeros((4, 4, 3, 3))}, file)


SPOILED = {
    "no weights": (lambda f: file_of(f, "unet").unlink(), "unet holds no weights; expected"),
    "cut short": (
        lambda f: file_of(f, "vae").write_bytes(file_of(f, "vae").read_bytes()[:5000]),
        "damaged or cut short",
    ),
    "missing tensor": (
        lambda f: rewrite(f, "unet", without("conv_in.bias")),
        r"sd's unet lacks the tensor 'conv_in.bias' of shape \(16,\)",
    ),
    "extra tensor": (
        lambda f: rewrite(f, "unet", with_more),
        "holds 1 tensors that the network lacks, such as 'conv_in.spare'",
    ),
    "misshapen": (
        lambda f: rewrite(f, "unet", widened),
        r"'conv_in.weight' is \(4, 4, 3, 3\), the network's is \(16, 4, 3, 3\)",
    ),
    "missing shard": (
        lambda f: (rewrite(f, "unet", in_shards), next((f / "unet").glob("*-00002-*")).unlink()),
        "no such weights file",
    ),
    "XL": (
        lambda f: edit(
            f / "model_index.json",
            lambda c: c.update(_class_name="StableDiffusionXLPipeline", text_encoder_2=["x", "y"]),
        ),
        "StableDiffusionXLPipeline with text_encoder_2; expected a Stable Diffusion 1.x or 2.x",
    ),
    "3": (
        lambda f: edit(
            f / "model_index.json",
            lambda c: (c.pop("unet"), c.update(_class_name="StableDiffusion3Pipeline")),
        ),
        "StableDiffusion3Pipeline without unet",
    ),
    "another width": (
        lambda f: edit(
            f / "controlnet" / "config.json", lambda c: c.update(block_out_channels=[16, 64])
        ),
        r"controlnet.block_out_channels=\(16, 64\): the U-Net's .* is \(16, 32\)",
    ),
    "no vocabulary": (
        lambda f: (f / "tokenizer" / "tokenizer.json").unlink(),
        "holds no vocabulary; expected vocab.json and merges.txt",
    ),
    "not a pipeline": (
        lambda f: (f / "model_index.json").unlink(),
        "model_index.json: no such file; is this a diffusers folder",
    ),
    "unknown field": (
        lambda f: edit(f / "unet" / "config.json", lambda c: c.update(sharpness=2)),
        "unknown field 'sharpness'",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_bad_folders_are_named(copy, settings, what):
    spoil, message = SPOILED[what]
    spoil(copy)
    with pytest.raises(InputError, match=message):
        weights_of(copy, settings)


def test_pickled_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"a": Evil()}, tmp_path / "model.bin")
    with (
        pytest.raises(InputError, match="holds more than weights"),
        pretrained.open_weights(tmp_path / "model.bin"),
    ):
        pass
