"""Conversion of published feature networks to safetensors, which need no torch or onnx."""

import pathlib

import numpy as np
import safetensors.numpy

from cranio_jax.errors import InputError
from cranio_jax.files.atomic import whole_file
from cranio_jax.pretrained.files import open_weights
from cranio_jax.pretrained.kinds import check_hash, recognise


def convert(file: pathlib.Path, out: pathlib.Path) -> str:
    """Writes the weights in `file` to `out` as safetensors in float32, and says what they are.

    Keys are torch's. Raises InputError if the name contradicts the content, or the content is
    unknown.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    digest = check_hash(file)
    with open_weights(file) as tensors:
        parts = recognise(tensors, file.name)
        values = {}
        for kind, part in parts:
            prefix = f"{kind.network}." if len(parts) > 1 else ""
            for key, tensor in part.items():
                values[prefix + key] = np.ascontiguousarray(tensor.read(), np.float32)
    with whole_file(out, "wb") as target:
        target.write(safetensors.numpy.save(values, {"format": "pt", "source_sha256": digest}))
    titles = " and ".join(kind.title for kind, _ in parts)
    return f"{file.name} is {titles}: {len(values)} tensors, SHA-256 {digest}"
