"""The log of a run."""

import io
import json
import struct
import subprocess
import sys

import numpy as np
from PIL import Image
from tensorboardX.proto import event_pb2

from cranio_jax.runs.log import Writer


def events(file):
    """Yields the events of a TensorBoard file; each has its length and two checksums around it."""
    content = io.BytesIO(file.read_bytes())
    while head := content.read(12):
        (length,) = struct.unpack("<Q", head[:8])
        yield event_pb2.Event.FromString(content.read(length))
        content.read(4)


def test_tensorboard_holds_what_the_lines_hold(tmp_path):
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[2:5, 3:9] = (200, 100, 0)
    with Writer(tmp_path) as writer:
        writer.scalars(1, {"loss": 0.5, "rate": 1e-4})
        writer.scalars(2, {"loss": 0.25})
        writer.image(2, "faces", picture)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scalars, pictures = [], []
    for event in events(next((tmp_path / "tensorboard").iterdir())):
        for value in event.summary.value:
            if value.HasField("image"):
                pictures.append((event.step, value.tag, value.image.encoded_image_string))
            else:
                scalars.append((event.step, value.tag, value.simple_value))
    wanted = [
        (line["step"], name, np.float32(number))
        for line in lines
        for name, number in line.items()
        if name not in ("step", "time")
    ]
    assert scalars == wanted and len(wanted) == 3
    ((step, tag, encoded),) = pictures
    assert (step, tag) == (2, "faces")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded))), picture)


def test_a_program_that_logs_imports_no_torch(tmp_path):
    code = f"""
import pathlib, sys
from cranio_jax.runs.log import Writer
with Writer(pathlib.Path({str(tmp_path)!r})) as writer:
    writer.scalars(1, {{"loss": 1.0}})
assert "torch" not in sys.modules
import torch
assert torch.ones(2).sum() == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True)
