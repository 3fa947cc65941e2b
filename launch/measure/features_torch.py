"""The benchmark's cases of feature networks, in torch."""

import functools
import importlib
import pathlib
import sys
import time
import types
from typing import Any

import numpy as np
import torch
from torch import nn

from launch.measure.cases import Figures, Task, median_seconds, random_pictures
from launch.measure.steps_torch import device, figures


def measure(task: Task) -> Figures:
    """Measures a task."""
    began = time.monotonic()
    alone = task.case == "inception"
    model = _inception(task) if alone else _lpips(task.case.removeprefix("lpips-"))
    model = model.eval().to(device())
    a, b = (torch.from_numpy(p.transpose(0, 3, 1, 2).copy()) for p in random_pictures(task))
    a, b = a.to(device()), b.to(device())

    @torch.inference_mode()
    def step():
        values = model(a) if alone else model(a / 127.5 - 1.0, b / 127.5 - 1.0)
        return [value.cpu() for value in values]

    step()
    starting = time.monotonic() - began
    return figures(median_seconds(step, task.repeats), starting)


class _Stub(types.ModuleType):
    """A module that has any name."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _inception(task: Task) -> nn.Module:
    """Returns torch-fidelity's extractor with random weights."""
    # JAX is not imported for the other networks, whose memory is measured without it.
    from cranio_jax.models import FIDInception
    from cranio_jax.models.functional import Network
    from cranio_jax.pretrained.names import torch_key, torch_shape

    # The extractor imports torchvision, of which it calls nothing here.
    for name in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{name}"] = _Stub(f"torchvision{name}")
    # Weights.
    rng = np.random.default_rng(0)
    state = {}
    for path, shape in Network(lambda rngs: FIDInception(rngs=rngs)).shapes().items():
        value = rng.standard_normal(torch_shape(path, shape), np.float32) * 0.05
        if path.endswith((".scale", ".var")):
            value = abs(value) + 0.8
        state[torch_key(path)] = torch.from_numpy(value)
    file = pathlib.Path(task.scratch) / "inception.pth"
    torch.save(state, file)
    extractor: Any = importlib.import_module("torch_fidelity").FeatureExtractorInceptionV3
    features = ["2048", "logits_unbiased"]
    return extractor("inception", features, feature_extractor_weights_path=str(file))


class _Fire(nn.Module):
    """SqueezeNet's block."""

    def __init__(self, inside: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeeze, 1)
        self.one = nn.Conv2d(squeeze, expand, 1)
        self.three = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.relu(torch.cat([self.one(x), self.three(x)], 1))


class _Distance(nn.Module):
    """LPIPS as the lpips package computes it; `taps` are the channels after some layers."""

    def __init__(self, layers: list[nn.Module], taps: dict[int, int]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.taps = taps
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in taps.values())
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def describe(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = (x - self.shift) / self.scale
        features = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.taps:
                features.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return features

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        parts = zip(self.heads, self.describe(a), self.describe(b), strict=True)
        return sum(head((x - y) ** 2).mean((1, 2, 3)) for head, x, y in parts)


def _lpips(trunk: str) -> nn.Module:
    """Returns LPIPS on torchvision's layers, with random weights."""
    return {"vgg": _vgg, "alex": _alex, "squeeze": _squeeze}[trunk]()


_pool = functools.partial(nn.MaxPool2d, 3, 2)


def _vgg() -> _Distance:
    layers: list[nn.Module] = []
    inside = 3
    # Channels of the convolutions; 0 is a pooling layer.
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if width:
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU()]
            inside = width
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return _Distance(layers, {3: 64, 8: 128, 15: 256, 22: 512, 29: 512})


def _alex() -> _Distance:
    layers = [
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        _pool(),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        _pool(),
    ]
    for inside, width in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU()]
    return _Distance(layers, {1: 64, 4: 192, 7: 384, 9: 256, 11: 256})


def _squeeze() -> _Distance:
    layers = [
        nn.Conv2d(3, 64, 3, 2),
        nn.ReLU(),
        _pool(ceil_mode=True),
        _Fire(64, 16, 64),
        _Fire(128, 16, 64),
        _pool(ceil_mode=True),
        _Fire(128, 32, 128),
        _Fire(256, 32, 128),
        _pool(ceil_mode=True),
        _Fire(256, 48, 192),
        _Fire(384, 48, 192),
        _Fire(384, 64, 256),
        _Fire(512, 64, 256),
    ]
    return _Distance(layers, {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512})
