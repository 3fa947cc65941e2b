"""insightface's network in torch, with random weights: the reference for ours."""

import torch
from torch import nn

# Blocks of each stage, as insightface publishes them.
LAYERS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}


class TorchExcitation(nn.Module):
    """Weighs channels by what all pixels say (Hu et al. 2018)."""

    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, width // 16, 1), nn.Conv2d(width // 16, width, 1)

    def forward(self, x):
        pooled = nn.functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(pooled))))


class TorchBlock(nn.Module):
    """insightface's block; with `excited`, its SE variant."""

    def __init__(self, inside, width, stride, excited=False):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, width, 3, 1, 1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(width), nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        if excited:
            self.se = TorchExcitation(width)
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        out = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        out = self.se(out) if hasattr(self, "se") else out
        return out + (self.downsample(x) if hasattr(self, "downsample") else x)


class TorchIResNet(nn.Module):
    """insightface's network of `layers` blocks in its stages, for faces of `side` pixels."""

    def __init__(self, layers, channels=64, side=112, excited=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(channels), nn.PReLU(channels)
        inside = channels
        for stage, count in enumerate(layers):
            width, blocks = channels * 2**stage, []
            for i in range(count):
                blocks.append(TorchBlock(inside, width, 2 if i == 0 else 1, excited))
                inside = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.bn2, self.dropout = nn.BatchNorm2d(inside), nn.Dropout(0.4)
        self.fc = nn.Linear(inside * (side // 16) ** 2, 512)
        self.features = nn.BatchNorm1d(512)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.features(self.fc(self.dropout(torch.flatten(self.bn2(x), 1))))


def iresnet(layers, seed=0, damping=1.0, **settings):
    """The network in inference mode, its norms and slopes far from their initial values.

    `damping` scales what each block adds, so that two hundred layers stay finite.
    """
    torch.manual_seed(seed)
    model = TorchIResNet(layers, **settings)
    norms = ("bn", "downsample.1", "prelu", "features")
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if any(norm in name for norm in norms):
                positive = name.endswith(("weight", "var")) and "prelu" not in name
                value.copy_(torch.rand_like(value.float()) * 0.5 + 0.5 * positive)
            if "bn3.weight" in name:
                value.mul_(damping)
    return model.eval()
