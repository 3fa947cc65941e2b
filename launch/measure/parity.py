"""Compares Stable Diffusion 1.5's networks with diffusers' and transformers', at their true size.

python launch/parity.py [--size=512]

Weights are random. For each part, PyTorch makes the network and its output, and saves the weights
as published files are; then ours loads the files and runs. This needs the test extra, 4 GB of disk
space for a short time, and the memory that it prints (under 16 GB).
"""

import argparse
import gc
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import jax
import numpy as np
import torch
import transformers

from cranio_jax import models, pretrained
from cranio_jax.models.functional import Network
from launch.measure import sd15

TOLERANCE = 1e-4  # of the relative error


class Inputs(NamedTuple):
    """The networks' inputs; pictures and latents have their channels last.

    Attributes:
      noise: `(1, size / 8, size / 8, 4)` standard normal.
      picture: `(1, size, size, 3)` in [0, 1].
      tokens: `(1, 77)` of a prompt.
      timestep: 0 to 999.
    """

    noise: np.ndarray
    picture: np.ndarray
    tokens: np.ndarray
    timestep: int = 501


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.numpy(), 1, -1)


def without_zeros(module: Any) -> Any:
    """Fills tensors of zeros with noise: a zero convolution would hide what comes before it."""
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                p.normal_(0.0, 0.02)
    return module.eval()


def load(make: Callable[[Any], Any], folder: pathlib.Path) -> tuple[Network, dict[str, jax.Array]]:
    """Returns our network with its parameters from a folder that PyTorch wrote."""
    network = Network(make)
    shapes = network.shapes()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pretrained.open_weights(folder) as tensors:
        placement = dict.fromkeys(shapes, device)
        return network, pretrained.load(shapes, tensors, placement, folder.name)


class Report:
    """Prints each comparison; `passed` says whether all are within the tolerance."""

    def __init__(self) -> None:
        self.passed = True
        self._start = time.monotonic()

    def add(self, name: str, ours: Any, theirs: np.ndarray) -> None:
        """Compares two outputs."""
        error = float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))
        seconds = time.monotonic() - self._start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{name:32s} relative error {error:.1e}   {seconds:5.0f} s   peak memory {peak:.1f} GB",
            flush=True,
        )
        self.passed = self.passed and error <= TOLERANCE


def main() -> None:
    """Compares all parts; the exit code is 1 if one differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--size", type=int, default=512, help="pixels")
    size = parser.parse_args().size
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    inputs = Inputs(
        noise=rng.standard_normal((1, size // 8, size // 8, 4), np.float32),
        picture=rng.random((1, size, size, 3), np.float32),
        tokens=rng.integers(0, 49408, (1, 77)),
    )
    report = Report()
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        folder = pathlib.Path(scratch)
        context = compare_text_encoder(report, inputs, folder / "text_encoder")
        compare_autoencoder(report, inputs, folder / "vae")
        residuals = compare_controlnet(report, inputs, context, folder / "controlnet")
        gc.collect()
        compare_unet(report, inputs, context, residuals, folder / "unet")
    sys.exit(0 if report.passed else f"a network differs by more than {TOLERANCE:g}")


def compare_text_encoder(report: Report, inputs: Inputs, folder: pathlib.Path) -> np.ndarray:
    """Returns PyTorch's context."""
    # PyTorch's.
    settings = transformers.CLIPTextConfig(**sd15.TEXT, **sd15.EOS)
    reference = without_zeros(transformers.CLIPTextModel(settings))
    context = reference(torch.from_numpy(inputs.tokens)).last_hidden_state.numpy()
    reference.save_pretrained(folder)
    del reference
    # Ours.
    config = models.CLIPTextConfig.from_mapping(sd15.TEXT)
    network, params = load(lambda rngs: models.CLIPTextModel(config, rngs=rngs), folder)
    ours = jax.jit(lambda p: network.bind(p)(inputs.tokens))(params)
    report.add("text encoder", ours, context)
    return context


def compare_autoencoder(report: Report, inputs: Inputs, folder: pathlib.Path) -> None:
    """Compares the latents' mean, and the picture decoded from it."""
    # PyTorch's.
    picture = 2 * inputs.picture - 1
    reference = without_zeros(diffusers.AutoencoderKL(**sd15.VAE))
    mean = channels_last(reference.encode(channels_first(picture)).latent_dist.mean)
    decoded = channels_last(reference.decode(channels_first(mean)).sample)
    reference.save_pretrained(folder)
    del reference
    # Ours.
    config = models.AutoencoderKLConfig.from_mapping(sd15.VAE)
    network, params = load(lambda rngs: models.AutoencoderKL(config, rngs=rngs), folder)
    ours = jax.jit(lambda p: network.bind(p).moments(picture)[0])(params)
    report.add("autoencoder, encode", ours, mean)
    latents = mean * config.scaling_factor
    ours = jax.jit(lambda p: network.bind(p).decode(latents))(params)
    report.add("autoencoder, decode", ours, decoded)


class Residuals(NamedTuple):
    """The ControlNet's outputs: PyTorch's, with channels first, and ours."""

    down: Any
    middle: Any
    our_down: Any
    our_middle: Any


def compare_controlnet(
    report: Report, inputs: Inputs, context: np.ndarray, folder: pathlib.Path
) -> Residuals:
    """Compares all residuals as one vector."""
    # PyTorch's.
    reference = without_zeros(diffusers.ControlNetModel(**sd15.UNET))
    down, middle = reference(
        channels_first(inputs.noise),
        torch.tensor([inputs.timestep]),
        torch.from_numpy(context),
        controlnet_cond=channels_first(inputs.picture),
        return_dict=False,
    )
    reference.save_pretrained(folder)
    del reference
    # Ours.
    config = models.ControlNetConfig.from_mapping(sd15.UNET)
    network, params = load(lambda rngs: models.ControlNetModel(config, rngs=rngs), folder)
    t = np.array([inputs.timestep], np.float32)
    run = jax.jit(lambda p: network.bind(p)(inputs.noise, t, context, inputs.picture))
    our_down, our_middle = run(params)
    theirs = _flat([channels_last(residual) for residual in (*down, middle)])
    report.add("ControlNet, 13 residuals", _flat([*our_down, our_middle]), theirs)
    return Residuals(down, middle, our_down, our_middle)


def compare_unet(
    report: Report,
    inputs: Inputs,
    context: np.ndarray,
    residuals: Residuals,
    folder: pathlib.Path,
) -> None:
    """Compares the U-Net's output with the ControlNet's residuals, each with its own."""
    # PyTorch's.
    reference = without_zeros(diffusers.UNet2DConditionModel(**sd15.UNET, **sd15.UP))
    output = reference(
        channels_first(inputs.noise),
        torch.tensor([inputs.timestep]),
        torch.from_numpy(context),
        down_block_additional_residuals=residuals.down,
        mid_block_additional_residual=residuals.middle,
    ).sample
    reference.save_pretrained(folder)
    del reference
    gc.collect()
    # Ours.
    config = models.UNet2DConditionConfig.from_mapping(sd15.UNET | sd15.UP)
    network, params = load(lambda rngs: models.UNet2DConditionModel(config, rngs=rngs), folder)
    t = np.array([inputs.timestep], np.float32)
    our_residuals = (residuals.our_down, residuals.our_middle)
    run = jax.jit(lambda p: network.bind(p)(inputs.noise, t, context, *our_residuals))
    report.add("U-Net with ControlNet", run(params), channels_last(output))


def _flat(parts: list[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(part).ravel() for part in parts])
