"""Stable Diffusion 1.5's networks at their true size against diffusers' and transformers', on random weights.

python launch/parity.py [--size=512]

Part after part: PyTorch makes the network and its answer, saves the weights as published files are, and goes; ours
loads the file and answers. Needs the test extra, 4 GB of disk for a moment, and the memory that it prints (under 16 GB).
"""

import argparse
import gc
import pathlib
import resource
import sys
import tempfile
import time

import diffusers
import jax
import numpy as np
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from cranio_jax import models, pretrained
from cranio_jax.models.functional import Network
from launch import sd15


def turned(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def back(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.numpy(), 1, -1)


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """No tensor is left at zero, or a zero convolution would hide what is before it."""
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                p.normal_(0.0, 0.02)
    return module.eval()


def ours(make, folder: pathlib.Path):
    """`(network, parameters)` from a folder that PyTorch wrote."""
    network = Network(make)
    shapes, here = network.shapes(), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pretrained.open_weights(folder) as tensors:
        return network, pretrained.load(shapes, tensors, dict.fromkeys(shapes, here), folder.name)


def report(name: str, got, wanted: np.ndarray, began: float) -> bool:
    error = float(np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name:32s} relative error {error:.1e}   {time.monotonic() - began:5.0f} s   peak memory {peak:.1f} GB",
        flush=True,
    )
    return error <= 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--size", type=int, default=512, help="pixels")
    size = parser.parse_args().size
    torch.manual_seed(0)
    began, rng, fine = time.monotonic(), np.random.default_rng(0), []
    noise = rng.standard_normal((1, size // 8, size // 8, 4), np.float32)
    picture = rng.random((1, size, size, 3), np.float32)
    ids = rng.integers(0, 49408, (1, 77))
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        scratch = pathlib.Path(scratch)

        reference = filled(
            transformers.CLIPTextModel(transformers.CLIPTextConfig(**sd15.TEXT, **sd15.EOS))
        )
        context = reference(torch.from_numpy(ids)).last_hidden_state.numpy()
        reference.save_pretrained(scratch / "text_encoder")
        del reference
        config = models.CLIPTextConfig.from_mapping(sd15.TEXT)
        network, params = ours(
            lambda rngs: models.CLIPTextModel(config, rngs=rngs), scratch / "text_encoder"
        )
        fine.append(
            report("text encoder", jax.jit(lambda p: network.bind(p)(ids))(params), context, began)
        )

        reference = filled(diffusers.AutoencoderKL(**sd15.VAE))
        mean = back(reference.encode(turned(2 * picture - 1)).latent_dist.mean)
        decoded = back(reference.decode(turned(mean)).sample)
        reference.save_pretrained(scratch / "vae")
        del reference
        config = models.AutoencoderKLConfig.from_mapping(sd15.VAE)
        network, params = ours(
            lambda rngs: models.AutoencoderKL(config, rngs=rngs), scratch / "vae"
        )
        fine.append(
            report(
                "autoencoder, encode",
                jax.jit(lambda p: network.bind(p).moments(2 * picture - 1)[0])(params),
                mean,
                began,
            )
        )
        latents = mean * config.scaling_factor
        fine.append(
            report(
                "autoencoder, decode",
                jax.jit(lambda p: network.bind(p).decode(latents))(params),
                decoded,
                began,
            )
        )

        step, words = torch.tensor([501]), torch.from_numpy(context)
        reference = filled(diffusers.ControlNetModel(**sd15.UNET))
        down, middle = reference(
            turned(noise), step, words, controlnet_cond=turned(picture), return_dict=False
        )
        reference.save_pretrained(scratch / "controlnet")
        del reference
        config = models.ControlNetConfig.from_mapping(sd15.UNET)
        network, params = ours(
            lambda rngs: models.ControlNetModel(config, rngs=rngs), scratch / "controlnet"
        )
        t = np.array([501.0], np.float32)
        got_down, got_middle = jax.jit(lambda p: network.bind(p)(noise, t, context, picture))(
            params
        )
        flat = lambda parts: np.concatenate([np.asarray(p).ravel() for p in parts])
        fine.append(
            report(
                "ControlNet, 13 residuals",
                flat([*got_down, got_middle]),
                flat([back(d) for d in (*down, middle)]),
                began,
            )
        )
        del params
        gc.collect()

        reference = filled(diffusers.UNet2DConditionModel(**sd15.UNET, **sd15.UP))
        wanted = back(
            reference(
                turned(noise),
                step,
                words,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
        )
        reference.save_pretrained(scratch / "unet")
        del reference
        gc.collect()
        config = models.UNet2DConditionConfig.from_mapping(sd15.UNET | sd15.UP)
        network, params = ours(
            lambda rngs: models.UNet2DConditionModel(config, rngs=rngs), scratch / "unet"
        )
        answer = jax.jit(lambda p: network.bind(p)(noise, t, context, got_down, got_middle))(params)
        fine.append(report("U-Net with ControlNet", answer, wanted, began))
    sys.exit(0 if all(fine) else "a network differs by more than 1e-4")


if __name__ == "__main__":
    main()
