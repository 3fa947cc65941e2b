"""The published torch networks of Pix2Pix, CycleGAN and CUT: the reference for ours."""

import torch
from torch import nn
from torch.nn import functional as F


def norm_of(kind, features):
    return nn.BatchNorm2d(features) if kind == "batch" else nn.InstanceNorm2d(features)


class TorchSkip(nn.Module):
    def __init__(self, outer, inner, inside, kind, first=0, dropout=False):
        super().__init__()
        self.outermost = bool(first)
        bias = kind == "instance"
        down = nn.Conv2d(first or outer, inner, 4, 2, 1, bias=bias)
        up = nn.ConvTranspose2d(
            inner * (2 if inside else 1), outer, 4, 2, 1, bias=bias or self.outermost
        )
        if self.outermost:
            layers = [down, inside, nn.ReLU(), up, nn.Tanh()]
        elif inside is None:
            layers = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, norm_of(kind, outer)]
        else:
            layers = [
                nn.LeakyReLU(0.2),
                down,
                norm_of(kind, inner),
                inside,
                nn.ReLU(),
                up,
                norm_of(kind, outer),
            ]
            layers += [nn.Dropout(0.5)] if dropout else []
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class TorchUnet(nn.Module):
    def __init__(self, levels, channels=64, kind="batch", dropout=True):
        super().__init__()
        block = TorchSkip(8 * channels, 8 * channels, None, kind)
        for _ in range(levels - 5):
            block = TorchSkip(8 * channels, 8 * channels, block, kind, dropout=dropout)
        for factor in (4, 2, 1):
            block = TorchSkip(factor * channels, 2 * factor * channels, block, kind)
        self.model = TorchSkip(3, channels, block, kind, first=3)

    def forward(self, x):
        return self.model(x)


class TorchDown(nn.Module):
    """Blurs with 1, 2, 1 along both axes, then keeps every second pixel."""

    def forward(self, x):
        taps = torch.tensor([1.0, 2.0, 1.0])
        kernel = (taps[:, None] * taps[None] / 16)[None, None].repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])


class TorchUp(nn.Module):
    """Transposed blur with 1, 3, 3, 1, cropped to twice the input size."""

    def forward(self, x):
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = (4 * taps[:, None] * taps[None] / 64)[None, None].repeat(x.shape[1], 1, 1, 1)
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.conv_transpose2d(padded, kernel, stride=2, padding=2, groups=x.shape[1])[
            :, :, 1:-1, 1:-1
        ]


class TorchBlock(nn.Module):
    def __init__(self, features, kind):
        super().__init__()

        def conv():
            return nn.Conv2d(features, features, 3, bias=kind == "instance")

        first = [nn.ReflectionPad2d(1), conv(), norm_of(kind, features), nn.ReLU()]
        self.conv_block = nn.Sequential(
            *first, nn.ReflectionPad2d(1), conv(), norm_of(kind, features)
        )

    def forward(self, x):
        return x + self.conv_block(x)


class TorchResnet(nn.Module):
    def __init__(self, blocks, channels=64, kind="instance", antialias=False):
        super().__init__()
        bias = kind == "instance"
        layers = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, channels, 7, bias=bias),
            norm_of(kind, channels),
            nn.ReLU(),
        ]
        for width in (channels, 2 * channels):
            layers += [
                nn.Conv2d(width, 2 * width, 3, 1 if antialias else 2, 1, bias=bias),
                norm_of(kind, 2 * width),
                nn.ReLU(),
            ]
            layers += [TorchDown()] if antialias else []
        layers += [TorchBlock(4 * channels, kind) for _ in range(blocks)]
        for width in (4 * channels, 2 * channels):
            up = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1, bias=bias)
            layers += (
                [TorchUp(), nn.Conv2d(width, width // 2, 3, 1, 1, bias=bias)] if antialias else [up]
            )
            layers += [norm_of(kind, width // 2), nn.ReLU()]
        self.model = nn.Sequential(
            *layers, nn.ReflectionPad2d(3), nn.Conv2d(channels, 3, 7), nn.Tanh()
        )

    def forward(self, x):
        return self.model(x)


class TorchPatches(nn.Module):
    def __init__(self, inside=3, channels=64, layers=3, kind="batch", antialias=False):
        super().__init__()
        bias, halving, less = (
            kind == "instance",
            1 if antialias else 2,
            [TorchDown()] if antialias else [],
        )
        made, before = (
            [nn.Conv2d(inside, channels, 4, halving, 1), nn.LeakyReLU(0.2), *less],
            channels,
        )
        for i in range(1, layers + 1):
            width = channels * min(2**i, 8)
            made += [
                nn.Conv2d(before, width, 4, halving if i < layers else 1, 1, bias=bias),
                norm_of(kind, width),
                nn.LeakyReLU(0.2),
            ]
            made += less if i < layers else []
            before = width
        self.model = nn.Sequential(*made, nn.Conv2d(before, 1, 4, 1, 1))

    def forward(self, x):
        return self.model(x)
