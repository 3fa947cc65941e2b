"""The cases of benchmark.py that time an evaluation's feature networks: pictures a second, ours and PyTorch's."""

import functools
import importlib
import pathlib
import sys
import time
import types

CASES = ("inception", "lpips-vgg", "lpips-alex", "lpips-squeeze", "iresnet50", "mobilefacenet")


def network_of(case: str):
    """`(network, function of parameters and uint8 pictures a, b)`; one of them is enough where a case takes no pairs."""
    from cranio_jax import models
    from cranio_jax.models import alignment
    from cranio_jax.models.functional import Network

    scaled = lambda pictures: pictures.astype("float32") / 127.5 - 1.0
    if case == "inception":
        network = Network(lambda rngs: models.FIDInception(rngs=rngs))
        return network, lambda params, a, b: network.bind(params)(a)
    if case.startswith("lpips"):
        network = Network(lambda rngs: models.LPIPS(case.removeprefix("lpips-"), rngs=rngs))
        return network, lambda params, a, b: network.bind(params)(scaled(a), scaled(b))
    network = Network(models.make_embedder({"network": case}))

    def embed(params, a, b):
        model = network.bind(params)
        return model(
            alignment.crop_face(scaled(a), (0.2, 0.2, 0.65, 0.6), model.height, model.width)
        )

    return network, embed


def pictures(task: dict):
    import numpy as np

    return np.random.default_rng(0).integers(
        0, 256, (2, task["batch"], task["size"], task["size"], 3), np.uint8
    )


def score_jax(task: dict) -> dict:
    import jax

    from launch import benchmark
    from launch.flops import flops

    began = time.monotonic()
    network, function = network_of(task["case"])
    params = jax.jit(network.init)(jax.random.key(0))
    a, b = jax.device_put(pictures(task))
    step = jax.jit(function)
    once = lambda: jax.block_until_ready(step(params, a, b))
    once()
    starting = time.monotonic() - began
    count = flops(function, params, a, b) / task["batch"] / 1e12
    return benchmark.finish_jax(task, benchmark.timed(once, task["repeats"]), starting, count, once)


def score_torch(task: dict) -> dict:
    import torch

    from launch import benchmark

    began, device = time.monotonic(), benchmark.torch_device()
    model = (
        inception_torch(task)
        if task["case"] == "inception"
        else lpips_torch(task["case"].removeprefix("lpips-"))
    )
    model = model.eval().to(device)
    a, b = (torch.from_numpy(p.transpose(0, 3, 1, 2).copy()).to(device) for p in pictures(task))

    @torch.inference_mode()
    def once():
        found = model(a) if task["case"] == "inception" else model(a / 127.5 - 1.0, b / 127.5 - 1.0)
        return [value.cpu() for value in found]

    once()
    starting = time.monotonic() - began
    return benchmark.finish_torch(benchmark.timed(once, task["repeats"]), starting)


def inception_torch(task: dict):
    """torch-fidelity's extractor with random weights; it asks for torchvision and, here, never calls it."""
    import numpy as np
    import torch

    from cranio_jax.pretrained.names import torch_key, torch_shape

    class Stub(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    for name in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{name}"] = Stub(f"torchvision{name}")
    rng, state = np.random.default_rng(0), {}
    for path, shape in network_of("inception")[0].shapes().items():
        value = rng.standard_normal(torch_shape(path, shape), np.float32) * 0.05
        state[torch_key(path)] = torch.from_numpy(
            abs(value) + 0.8 if path.endswith((".scale", ".var")) else value
        )
    file = pathlib.Path(task["scratch"]) / "inception.pth"
    torch.save(state, file)
    extractor = importlib.import_module("torch_fidelity").FeatureExtractorInceptionV3
    return extractor(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
    )


def lpips_torch(trunk: str):
    """What the lpips package computes, on torchvision's layers, with random weights."""
    import torch
    from torch import nn

    class Fire(nn.Module):
        def __init__(self, inside, squeeze, expand):
            super().__init__()
            self.squeeze = nn.Conv2d(inside, squeeze, 1)
            self.one, self.three = (
                nn.Conv2d(squeeze, expand, 1),
                nn.Conv2d(squeeze, expand, 3, padding=1),
            )

        def forward(self, x):
            x = torch.relu(self.squeeze(x))
            return torch.relu(torch.cat([self.one(x), self.three(x)], 1))

    relu, pool = functools.partial(nn.ReLU, inplace=False), functools.partial(nn.MaxPool2d, 3, 2)
    if trunk == "vgg":
        layers, inside = [], 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
            layers += (
                [nn.Conv2d(inside, width, 3, padding=1), relu()] if width else [nn.MaxPool2d(2, 2)]
            )
            inside = width or inside
        taps = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}
    elif trunk == "alex":
        layers = [
            nn.Conv2d(3, 64, 11, 4, 2),
            relu(),
            pool(),
            nn.Conv2d(64, 192, 5, padding=2),
            relu(),
            pool(),
        ]
        for inside, width in ((192, 384), (384, 256), (256, 256)):
            layers += [nn.Conv2d(inside, width, 3, padding=1), relu()]
        taps = {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}
    else:
        layers = [
            nn.Conv2d(3, 64, 3, 2),
            relu(),
            pool(ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            pool(ceil_mode=True),
        ]
        layers += [Fire(128, 32, 128), Fire(256, 32, 128), pool(ceil_mode=True)]
        layers += [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
        taps = {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512}

    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layers)
            self.heads = nn.ModuleList(
                nn.Conv2d(width, 1, 1, bias=False) for width in taps.values()
            )
            self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
            self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

        def describe(self, x):
            x, found = (x - self.shift) / self.scale, []
            for i, layer in enumerate(self.layers):
                x = layer(x)
                if i in taps:
                    found.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
            return found

        def forward(self, a, b):
            parts = zip(self.heads, self.describe(a), self.describe(b), strict=True)
            return sum(head((x - y) ** 2).mean((1, 2, 3)) for head, x, y in parts)

    return Distance()
