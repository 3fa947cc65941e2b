"""Configuration, random weights and examples at Stable Diffusion 1.5's size."""

import functools
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import cranio_diff
from cranio_jax import models, pretrained
from cranio_jax.distributed import sharding
from cranio_jax.files.atomic import write_json
from cranio_jax.methods import make_method
from cranio_jax.models.functional import Network
from cranio_jax.pretrained.names import torch_key, torch_shape
from cranio_jax.runs.state import shardings_of
from launch.measure import sd15
from launch.measure.cases import Task

TOKENS, TEXT_WIDTH, LATENT_CHANNELS, FACTOR = 77, 768, 4, 8


def make_config(task: Task) -> ml_collections.ConfigDict:
    """Returns the configuration of Cranio-Diff for a task."""
    c = cranio_diff.get_config()
    c.compute_dtype = task.dtype
    c.data.settings.size = task.size or 512
    c.prompt.tokenizer = "words"
    c.method.update(unet=sd15.UNET | sd15.UP, vae=sd15.VAE, text_encoder=sd15.TEXT)
    c.train.remat = task.base_case != task.case
    c.method.trained = ("controlnet", "unet") if task.base_case == "both" else ("controlnet",)
    c.train.batch_size = task.batch
    c.sampling.num_steps = task.sampling_steps
    if task.base_case == "losses":
        files = write_features(pathlib.Path(task.scratch) / "features")
        c.method.losses.update(files, decode_batch=0, gate="none")
    else:
        c.method.losses.update(lpips=0.0, identity=0.0)
    return c


def write_features(folder: pathlib.Path) -> dict[str, str]:
    """Writes random weights of VGG16, LPIPS's heads and an IResNet-50.

    Returns the fields of `method.losses` that name the files.
    """
    lpips = Network(lambda rngs: models.LPIPS("vgg", rngs=rngs))
    embedder = Network(lambda rngs: models.EMBEDDERS["iresnet50"](rngs=rngs))
    files = {
        "trunk_file": (lpips, "features."),
        "heads_file": (lpips, "lin"),
        "embedder_file": (embedder, ""),
    }
    for field, (network, prefix) in files.items():
        params = jax.jit(network.init)(jax.random.key(0))
        params = {path: p for path, p in params.items() if path.startswith(prefix)}
        pretrained.save(folder / field, "", pretrained.tensors_of(params), "float32")
    return {field: str(folder / field) for field in files}


def examples(method: Any, task: Task) -> dict[str, np.ndarray]:
    """Returns a batch of random examples, as a step or the sampler of `method` takes it."""
    rng = np.random.default_rng(0)
    count = task.batch
    size = task.size
    side = size // FACTOR
    batch = {
        "xray": rng.integers(0, 256, (count, size, size, 1), np.uint8),
        "id_hash": np.arange(count, dtype=np.uint32),
    }
    if task.case == "sample":
        return batch | {"prompt_ids": np.ones((count, TOKENS), np.int32)}
    latents = rng.standard_normal((count, side, side, LATENT_CHANNELS))
    batch["latents"] = latents.astype(method.dtype)
    batch["context"] = rng.standard_normal((count, TOKENS, TEXT_WIDTH)).astype(method.dtype)
    if task.base_case == "losses":
        batch["face"] = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        batch["frontal"] = np.ones(count, np.float32)
    return batch


class Start(NamedTuple):
    """A method, ready for its first step.

    Attributes:
      method: see `cranio_jax.methods.Method`.
      mesh: all devices.
      state: of the training; on the devices.
      frozen: parameters that are not trained; on the devices.
      batch: examples; on the devices.
      began: `time.monotonic()` before any of this was built.
    """

    method: Any
    mesh: jax.sharding.Mesh
    state: Any
    frozen: Any
    batch: Any
    began: float


def start(task: Task) -> Start:
    """Makes the method of a task and puts its state and a batch onto the devices."""
    began = time.monotonic()
    mesh = sharding.make_mesh()
    sharding.check_batch(task.batch, mesh, "--batches")
    method = make_method(make_config(task))
    shardings = shardings_of(method, mesh)[1]
    features = method.load(mesh, frozen_only=False)

    def init(features):
        loaded = {
            name: {path: _wave(shape) for path, shape in network.shapes().items()}
            for name, network in method.networks.items()
        }
        return method.init(jax.random.key(0), loaded | features)

    state, frozen = jax.jit(init, out_shardings=shardings, donate_argnums=0)(features)
    batch = sharding.put_batch(examples(method, task), mesh)
    jax.block_until_ready((state, frozen))
    return Start(method, mesh, state, frozen, batch, began)


def _wave(shape: tuple[int, ...]) -> jax.Array:
    """Returns parameters: drawing a billion normal numbers would take minutes on two cores."""
    values = jnp.sin(jnp.arange(math.prod(shape), dtype=jnp.float32))
    return 0.02 * values.reshape(shape)


def _make(model_class: Any, config: Any, rngs: Any) -> Any:
    return model_class(config, rngs=rngs)


def write_pipeline(folder: pathlib.Path) -> None:
    """Writes a pipeline of random weights in Stable Diffusion 1.5's files."""
    unet = sd15.UNET | sd15.UP
    parts: dict[str, tuple[dict[str, Any], Any, Any]] = {
        "unet": (unet, models.UNet2DConditionConfig, models.UNet2DConditionModel),
        "controlnet": (sd15.UNET, models.ControlNetConfig, models.ControlNetModel),
        "vae": (sd15.VAE, models.AutoencoderKLConfig, models.AutoencoderKL),
        "text_encoder": (sd15.TEXT, models.CLIPTextConfig, models.CLIPTextModel),
    }
    rng = np.random.default_rng(0)
    for part, (settings, config_class, model_class) in parts.items():
        # Weights.
        config = config_class.from_mapping(settings)
        network = Network(functools.partial(_make, model_class, config))
        tensors = (
            (torch_key(path), rng.standard_normal(torch_shape(path, shape), np.float32))
            for path, shape in network.shapes().items()
        )
        pretrained.save(folder / part, part, tensors, "float32")
        # Settings.
        extra: dict[str, Any] = {"_class_name": model_class.__name__}
        if part == "text_encoder":
            extra = {"model_type": "clip_text_model", **sd15.EOS}
        write_json(folder / part / "config.json", settings | extra)
    write_json(folder / "tokenizer" / "vocab.json", {})
    (folder / "tokenizer" / "merges.txt").write_text("")
    write_json(folder / "scheduler" / "scheduler_config.json", {})
    names = (*parts, "tokenizer", "scheduler")
    write_json(folder / "model_index.json", {name: ["", ""] for name in names})
