"""Weight files: choosing a folder's, and reading tensors one at a time."""

import contextlib
import functools
import json
import pathlib
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from cranio_jax.errors import InputError
from cranio_jax.pretrained.hashes import sha256_of
from cranio_jax.pretrained.onnx import read_iresnet

_STEM = r"(?:diffusion_pytorch_model|model|pytorch_model)"
# The best first: full precision before half, safetensors before torch's own, one file before many.
# diffusers and transformers put the variant of an index and of its shards in different places.
_CHOICES = tuple(
    re.compile(_STEM + name.replace(".", r"\.").replace("VARIANT", variant) + "$")
    for suffix in ("safetensors", "bin")
    for variant in ("", r"\.fp16", r"\.bf16", r"\.fp8\w*")
    for name in (
        f"VARIANT.{suffix}",
        f".{suffix}VARIANT.index.json",
        f".{suffix}.indexVARIANT.json",
    )
)
_VARIANT = re.compile(r"\.(?:fp16|bf16|fp8\w*)(?=\.|$)")
# Safetensors' names of types that numpy lacks.
_EXTENDED = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2}
_NATIVE = ("F64", "F32", "F16", "BF16")
# Where training scripts keep the weights beside a step count, an optimizer or a head.
_STATES = {"state_dict", "model_state_dict", "net_state_dict", "state_dict_backbone", "model"}
_STATES |= {"net", "backbone", "params", "params_ema", "model_ema", "ema"}


class Tensor(NamedTuple):
    """A tensor that is read on demand."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def choose(names: Collection[str]) -> str | None:
    """Returns the weights file, or the index of a sharded one, among a folder's file names."""
    for pattern in _CHOICES:
        for name in sorted(names):
            if pattern.fullmatch(name):
                return name
    return None


def shard_patterns(name: str) -> list[str]:
    """Returns patterns of the files with the tensors of `name`, a weights file or an index."""
    if not name.endswith(".json"):
        return [name]
    match = _VARIANT.search(name)
    variant = match[0] if match else ""
    stem = name.split(".")[0]
    suffix = "safetensors" if ".safetensors" in name else "bin"
    patterns = [f"{stem}{variant}-*.{suffix}", f"{stem}-*{variant}.{suffix}"]
    return patterns if variant else [f"{stem}-?????-of-?????.{suffix}"]


def shards(index: pathlib.Path) -> list[str]:
    """Returns the file names that an index of shards lists. Raises InputError if it is damaged."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: not an index of shards ({type(error).__name__})") from None
    for name in names:
        if not isinstance(name, str) or not name or name != pathlib.PurePath(name).name:
            raise InputError(f"{index}: lists {name!r}, which is not a file beside it")
    return names


def weight_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a weights file, an index of shards, or a folder with either.

    Raises InputError if one is missing.
    """
    if path.is_dir():
        name = choose([p.name for p in path.iterdir()])
        if name is None:
            raise InputError(
                f"{path} holds no weights; expected diffusion_pytorch_model or model "
                ".safetensors or .bin"
            )
        path = path / name
    files = [path]
    if path.name.endswith(".json"):
        files = [path.with_name(name) for name in shards(path)]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such weights file")
    return files


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of the bytes of `weight_files(path)`, one after the other."""
    return sha256_of(weight_files(path))


@contextlib.contextmanager
def open_weights(path: pathlib.Path) -> Iterator[dict[str, Tensor]]:
    """The tensors by key of a weights file, an index of shards, or a folder with either.

    Only headers are read until a tensor's `read` is called; ONNX files, and torch files from
    before version 1.6, are read at once. Torch files are read with `weights_only=True`
    and need torch; an ONNX file needs onnx and must hold an IResNet. Raises InputError, naming
    the file, where it is missing or damaged, or holds a tensor twice.
    """
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Tensor] = {}
        for file in weight_files(path):
            more = _tensors_in(file, stack)
            if twice := tensors.keys() & more.keys():
                raise InputError(f"{file}: holds {min(twice)!r}, which another shard holds too")
            tensors |= more
        yield tensors


def _tensors_in(file: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    try:
        with open(file, "rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror})") from None
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{file}: a pointer of Git LFS, not the weights; run `git lfs pull`")
    if file.suffix == ".safetensors" or start[8:10] == b'{"':
        return _safetensors(file, stack)
    return _onnx(file) if file.suffix == ".onnx" else _torch(file, zipped=start[:2] == b"PK")


def _safetensors(file: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    try:
        opened = stack.enter_context(safetensors.safe_open(file, "numpy"))
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged or cut short ({error}); fetch it again") from None
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))

    def read(key: str) -> np.ndarray:
        kind, shape = header[key]["dtype"], header[key]["shape"]
        if kind in _NATIVE:
            return opened.get_tensor(key)
        if kind not in _EXTENDED:
            raise InputError(_not_floating(file, key, kind))
        begin, end = header[key]["data_offsets"]
        data = np.fromfile(file, np.uint8, end - begin, offset=8 + size + begin)
        return data.view(_EXTENDED[kind]).reshape(shape)

    return {
        key: Tensor(tuple(header[key]["shape"]), functools.partial(read, key))
        for key in opened.keys()
    }


def _not_floating(file: pathlib.Path, key: str, kind: str) -> str:
    return f"{file}: the tensor {key!r} is of type {kind}; expected floating-point weights"


def _onnx(file: pathlib.Path) -> dict[str, Tensor]:
    return {
        key: Tensor(value.shape, functools.partial(np.asarray, value))
        for key, value in read_iresnet(file).items()
    }


def _torch(file: pathlib.Path, zipped: bool) -> dict[str, Tensor]:
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError(
            f"{file} is torch's own format: install torch to read it, or use a safetensors file"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Files from before torch 1.6 are not archives, and can't be mapped.
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises many kinds of errors
        raise InputError(
            f"{file}: damaged, or holds more than weights ({_torch_reason(str(error))})"
        ) from None

    def read(key: str, tensor: "torch.Tensor") -> np.ndarray:
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise InputError(_not_floating(file, key, f"{tensor.dtype}, {tensor.layout}"))
        numpy_has = tensor.dtype in (torch.float16, torch.float32, torch.float64)
        return (tensor if numpy_has else tensor.float()).detach().numpy()

    return {
        key: Tensor(tuple(tensor.shape), functools.partial(read, key, tensor))
        for key, tensor in _state(content, file, torch.Tensor).items()
    }


def _torch_reason(message: str) -> str:
    """Returns what torch found, without its advice to load the file unsafely."""
    if "TorchScript" in message:
        return "it is a TorchScript program"
    if refused := re.search(r"GLOBAL (\S+)", message):
        return f"it calls {refused[1]}"
    return re.split(r"\. |\n", message)[0] or "it ends too early"


def _state(content: Any, file: pathlib.Path, kind: type) -> dict[str, Any]:
    """Returns the state dictionary in what a torch file holds, which may hold other things too."""

    def tensors(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            return {}
        return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, kind)}

    if not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__}, not tensors by name")
    states = {name: state for name, value in content.items() if (state := tensors(value))}
    if own := tensors(content):
        states[""] = own
    known = {name: state for name, state in states.items() if name in _STATES} or states
    if len(known) > 1:
        names = ", ".join(str(name) or "unnamed tensors" for name in known)
        raise InputError(f"{file}: holds several sets of tensors ({names}); keep one of them")
    return next(iter(known.values()), {})
