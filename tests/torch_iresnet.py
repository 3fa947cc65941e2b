"""insightface's network in torch, with random weights: the reference for ours."""

import torch
from torch import nn


class TorchBlock(nn.Module):
    """insightface's block."""

    def __init__(self, inside, width, stride):
        super().__init__()
        self.bn1, self.conv1, self.bn2 = nn.BatchNorm2d(inside), nn.Conv2d(inside, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.prelu, self.conv2, self.bn3 = nn.PReLU(width), nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return out + (self.downsample(x) if hasattr(self, "downsample") else x)


class TorchIResNet(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.conv1, self.bn1, self.prelu = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        inside = 64
        for stage, (width, count) in enumerate(zip((64, 128, 256, 512), layers, strict=True), 1):
            blocks = (TorchBlock(inside if i == 0 else width, width, 2 if i == 0 else 1) for i in range(count))
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inside = width
        self.bn2, self.dropout = nn.BatchNorm2d(512), nn.Dropout(0.4)
        self.fc, self.features = nn.Linear(512 * 49, 512), nn.BatchNorm1d(512)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.features(self.fc(self.dropout(torch.flatten(self.bn2(x), 1))))


def iresnet(layers, seed=0):
    """The network in inference mode, its norms and slopes far from their initial values."""
    torch.manual_seed(seed)
    model = TorchIResNet(layers)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if "bn" in name or "downsample.1" in name or name.startswith("features") or "prelu" in name:
                away = 0.5 if name.endswith(("weight", "var")) and "prelu" not in name else 0.0
                value.copy_(torch.rand_like(value.float()) * 0.5 + away)
    return model.eval()
