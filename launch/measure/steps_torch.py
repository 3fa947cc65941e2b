"""The benchmark's cases of training, sampling and loading, with diffusers and torch."""

import pathlib
import time
from typing import Any

import diffusers
import torch
import transformers

from launch.measure import sd15
from launch.measure.cases import REMAT, Figures, Task, host_peak, median_seconds

GUIDANCE = 7.5


def measure(task: Task) -> Figures:
    """Measures a task."""
    return {"load": _load, "sample": _sample}.get(task.case, _step)(task)


def device() -> str:
    """Returns 'cuda' if there is a GPU, else 'cpu'."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def figures(seconds: float, starting: float) -> Figures:
    """Returns a task's figures, with the memory so far."""
    memory = host_peak()
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated() / 2**30
    return Figures(
        seconds=seconds,
        starting=starting,
        memory=memory,
        device=f"torch {torch.__version__}",
    )


def _networks(task: Task) -> tuple[Any, Any]:
    """Returns U-Net and ControlNet.

    Trained parameters are float32, the others of the type that they are used in.
    """
    torch.manual_seed(0)
    with torch.device(device()):
        unet = diffusers.UNet2DConditionModel(**sd15.UNET, **sd15.UP)
        controlnet = diffusers.ControlNetModel(**sd15.UNET)
    if task.base_case != "both":
        unet = unet.to(getattr(torch, task.dtype)).requires_grad_(False)
    if task.case.endswith(REMAT):
        unet.enable_gradient_checkpointing()
        controlnet.enable_gradient_checkpointing()
    return unet, controlnet


def _denoised(unet, controlnet, noisy, timesteps, context, picture) -> torch.Tensor:
    """Returns the output of the U-Net with the ControlNet's residuals."""
    down, middle = controlnet(noisy, timesteps, context, controlnet_cond=picture, return_dict=False)
    return unet(
        noisy,
        timesteps,
        context,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample


class _Training:
    """Networks, optimizer and random examples; a call is a training step."""

    def __init__(self, task: Task):
        self.dtype = getattr(torch, task.dtype)
        self.networks = _networks(task)
        self.trained = [p for model in self.networks for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.trained]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=1e-5, fused=True)
        self.count = task.batch
        side = task.size // 8
        self.latents = torch.randn(self.count, 4, side, side, device=device())
        self.context = torch.randn(self.count, 77, 768, device=device())
        self.picture = torch.rand(self.count, 3, task.size, task.size, device=device())

    def __call__(self) -> None:
        # Loss.
        noise = torch.randn_like(self.latents)
        timesteps = torch.randint(0, 1000, (self.count,), device=device())
        noisy = 0.7 * self.latents + 0.7 * noise
        with torch.autocast(device(), self.dtype, enabled=self.dtype != torch.float32):
            output = _denoised(*self.networks, noisy, timesteps, self.context, self.picture)
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        # Update.
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(self.average, [p.detach() for p in self.trained], 1e-3)
        loss.item()  # waits for the device


def _step(task: Task) -> Figures:
    """Measures a training step."""
    began = time.monotonic()
    step = _Training(task)
    step()
    starting = time.monotonic() - began
    return figures(median_seconds(step, task.repeats), starting)


class _Sampling:
    """Networks and random examples; a call samples a batch with DDIM and guidance."""

    def __init__(self, task: Task):
        self.dtype = getattr(torch, task.dtype)
        self.networks = [model.to(self.dtype).eval() for model in _networks(task)]
        with torch.device(device()):
            self.vae = diffusers.AutoencoderKL(**sd15.VAE).to(self.dtype).eval()
        self.scheduler = diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
        )
        self.steps = task.sampling_steps
        side = task.size // 8
        self.shape = (task.batch, 4, side, side)
        kind = dict(device=device(), dtype=self.dtype)
        self.context = torch.randn(2 * task.batch, 77, 768, **kind)
        self.picture = torch.rand(2 * task.batch, 3, task.size, task.size, **kind)

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        unet, controlnet = self.networks
        self.scheduler.set_timesteps(self.steps)
        x = torch.randn(*self.shape, device=device(), dtype=self.dtype)
        for t in self.scheduler.timesteps:
            output = _denoised(unet, controlnet, torch.cat([x, x]), t, self.context, self.picture)
            empty, full = output.chunk(2)
            guided = empty + GUIDANCE * (full - empty)
            x = self.scheduler.step(guided, t, x).prev_sample
        return self.vae.decode(x / self.vae.config.scaling_factor).sample.float().cpu()


def _sample(task: Task) -> Figures:
    """Measures the sampling of a batch, once."""
    began = time.monotonic()
    sample = _Sampling(task)
    if device() != "cpu":
        sample()
    starting = time.monotonic() - began
    return figures(median_seconds(sample, 1), starting)


def _load(task: Task) -> Figures:
    """Measures how long published files take onto the device."""
    folder = pathlib.Path(task.scratch) / "pipeline"
    classes: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel,
        "controlnet": diffusers.ControlNetModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
    }
    start = time.monotonic()
    models = []
    for part, model_class in classes.items():
        # The ControlNet is trained, so it is float32, as ours is.
        dtype = torch.float32 if part == "controlnet" else getattr(torch, task.dtype)
        models.append(model_class.from_pretrained(folder / part, torch_dtype=dtype))
    models = [model.to(device()) for model in models]
    # Files are mapped: a sum over each parameter makes sure that it has been read.
    sum(float(p.sum()) for model in models for p in model.parameters())
    return figures(time.monotonic() - start, starting=0.0)
