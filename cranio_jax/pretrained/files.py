"""Files of weights: which of a folder's to take, and tensors one at a time."""

import contextlib
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np
import safetensors

from cranio_jax.errors import InputError
from cranio_jax.pretrained.onnx import read_iresnet

_STEM = r"(?:diffusion_pytorch_model|model|pytorch_model)"
# The best first: full precision before half, safetensors before torch's own, one file before many.
_CHOICES = tuple(
    re.compile(pattern)
    for suffix in ("safetensors", "bin")
    for variant in ("", r"\.fp16")
    for pattern in (
        rf"{_STEM}{variant}\.{suffix}",
        # diffusers and transformers put the variant of an index in different places
        rf"{_STEM}\.{suffix}{variant}\.index\.json" if variant else rf"{_STEM}\.{suffix}\.index\.json",
        rf"{_STEM}\.{suffix}\.index{variant}\.json" if variant else r"(?!)",
    )
)


class Tensor(NamedTuple):
    """A tensor that is read when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def choose(names: Collection[str]) -> str | None:
    """The weights among a folder's file names: a file, or the index of a sharded one; None if there are none."""
    for pattern in _CHOICES:
        for name in sorted(names):
            if pattern.fullmatch(name):
                return name
    return None


def shard_pattern(name: str) -> str:
    """A pattern of the files that hold the tensors of `name`, which is a weights file or an index of shards."""
    if not name.endswith(".json"):
        return name
    variant, suffix = ".fp16" if ".fp16" in name else "", "safetensors" if ".safetensors" in name else "bin"
    return f"{name.split('.')[0]}{variant}-*.{suffix}"


def shards(index: pathlib.Path) -> list[str]:
    """File names that an index of shards lists. Raises InputError where it is damaged."""
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{index}: not an index of shards ({type(error).__name__})") from None


def weight_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of a weights file, an index of shards, or a folder with either. Raises InputError where there are none."""
    if path.is_dir():
        name = choose([p.name for p in path.iterdir()])
        if name is None:
            raise InputError(f"{path} holds no weights; expected diffusion_pytorch_model or model .safetensors or .bin")
        path = path / name
    files = [path.with_name(name) for name in shards(path)] if path.name.endswith(".json") else [path]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such weights file")
    return files


def sha256(path: pathlib.Path) -> str:
    """Of the bytes of `weight_files(path)`, one after the other."""
    digest = hashlib.sha256()
    for file in weight_files(path):
        with open(file, "rb") as stream:
            while block := stream.read(2**24):
                digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def open_weights(path: pathlib.Path) -> Iterator[dict[str, Tensor]]:
    """The tensors by key of a weights file, an index of shards, or a folder with either.

    Nothing is read but headers until a tensor's `read` is called. Torch files are read with `weights_only=True` and need
    torch; an ONNX file, which needs onnx, is read at once and must hold an IResNet. Raises InputError, naming the file,
    where it is missing or damaged.
    """
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Tensor] = {}
        for file in weight_files(path):
            readers = {".safetensors": lambda file: _safetensors(file, stack), ".onnx": _onnx}
            tensors |= readers.get(file.suffix, _torch)(file)
        yield tensors


def _safetensors(file: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    try:
        opened = stack.enter_context(safetensors.safe_open(file, "numpy"))
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged or cut short ({error}); fetch it again") from None
    return {key: Tensor(tuple(opened.get_slice(key).get_shape()), lambda key=key: opened.get_tensor(key)) for key in opened.keys()}


def _onnx(file: pathlib.Path) -> dict[str, Tensor]:
    return {key: Tensor(value.shape, lambda value=value: value) for key, value in read_iresnet(file).items()}


def _torch(file: pathlib.Path) -> dict[str, Tensor]:
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError(f"{file} is torch's own format: install torch to read it, or use a safetensors file") from None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds
        if not isinstance(error, (RuntimeError, OSError, EOFError, ValueError)) and type(error).__name__ != "UnpicklingError":
            raise
        raise InputError(f"{file}: damaged, or holds more than weights ({str(error).splitlines()[0]})") from None
    state = state.get("state_dict", state)

    def read(tensor):
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    return {key: Tensor(tuple(t.shape), lambda t=t: read(t)) for key, t in state.items() if isinstance(t, torch.Tensor)}
