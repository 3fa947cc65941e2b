"""LoRA files for Stable Diffusion (Hu et al. 2022), added to the weights that they are for."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from cranio_jax.errors import InputError
from cranio_jax.pretrained.files import Tensor
from cranio_jax.pretrained.single_file import Shapes, metadata, module_places, open_file

FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_FACTOR = re.compile(
    r"(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<role>A|B|down|up|mid)(?:\.default)?\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:[._]lora)?\.alpha")
_ROLES = {"A": "down", "B": "up"}
# Patterns of keys that show that a file is not LoRA, in the order of the checks.
_OTHERS = (
    (r"hada_", "LoHa, products of two low-rank matrices"),
    (r"lokr_", "LoKr, Kronecker products"),
    (r"dora_scale|lora_magnitude_vector", "DoRA, with magnitudes of their own"),
    (r"\.oft_|oft_(?:blocks|diag)|boft_", "OFT, rotations"),
    (r"\.on_input$|\.ia3_", "IA3, factors"),
    (r"\.diff(?:_b)?$|\.[wb]_norm$", "whole differences of weights (LyCORIS)"),
    (r"lora_controlnet", "a Control-LoRA, which is a ControlNet"),
    (r"^lllite_", "ControlLLLite, which is a ControlNet"),
    (r"motion_modules", "AnimateDiff's motion"),
    (r"^lora_te[23]_|^text_encoder_[23]\.", "LoRA for Stable Diffusion XL or 3"),
    (r"^transformer\.|double_blocks|joint_blocks", "LoRA for Stable Diffusion 3 or Flux"),
    (r"^bundle_emb\.|^emb_params$|string_to_param", "words of textual inversion"),
    (r"^base_model\.model\.", "peft's own file, whose strength is in another file"),
    (r"lora_(?:B|up)(?:\.default)?\.bias$", "LoRA with biases"),
)
# Older names of the text encoder's projections.
_TEXT_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


@dataclasses.dataclass(frozen=True)
class Addition:
    """A low-rank addition to one layer: `scale` times the product up, mid, down.

    Attributes:
      down, up, mid: keys in the file; without `mid` the product is of two.
      rank: of the product.
      scale: alpha / rank.
    """

    down: str
    up: str
    mid: str
    rank: int
    scale: float

    def product(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> np.ndarray:
        """Returns what is added to a layer's weights, of torch's `shape`, float32."""
        down, up = (np.asarray(tensors[key].read(), np.float32) for key in (self.down, self.up))
        down, up = down.reshape(self.rank, -1), up.reshape(shape[0], -1)
        if self.mid:
            mid = np.asarray(tensors[self.mid].read(), np.float32)
            # The outer two are 1 x 1 convolutions.
            product = np.einsum("or,rsij,sc->ocij", up, mid, down)
        else:
            product = up @ down
        return np.float32(self.scale) * product.reshape(shape)


Lora = dict[str, dict[str, Addition]]


def find_lora(folder: pathlib.Path, where: str) -> pathlib.Path:
    """Returns the LoRA file in a folder as diffusers writes it; InputError if there is none."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"pretrained.lora={where}: the folder holds no {FILES[0]}. Name the file itself."
    )


def read_lora(path: pathlib.Path, layers: Mapping[str, Shapes]) -> Lora:
    """Returns a file's additions by part and by the key of the weights that they change.

    Args:
      path: of a file with diffusers', peft's or kohya's keys; only names and shapes are read.
      layers: by part ('unet', 'text_encoder') the shapes of its tensors by diffusers' keys.

    Raises:
      InputError: a key finds no layer, a product has another shape than the layer, or the file
        holds something else than LoRA.
    """
    what = f"pretrained.lora={path.name}"
    names = _layer_names(layers)
    factors: dict[tuple[str, str], dict[str, str]] = {}
    with open_file(path) as tensors:
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        alphas = _alphas(path, tensors)
    if not shapes:
        raise InputError(f"{what}: it holds no tensors. Name another file.")
    # Every key to its layer.
    for pattern, title in _OTHERS:
        for key in shapes:
            if re.search(pattern, key):
                raise InputError(
                    f"{what}: it holds {key!r}, so it is {title}. Only LoRA for Stable Diffusion "
                    "1.x and 2.x is implemented."
                )
    for key in shapes:
        match = _FACTOR.fullmatch(key) or _ALPHA.fullmatch(key)
        layer = names.get(match["layer"].replace(".processor", "")) if match else None
        if match is None or layer is None:
            raise InputError(f"{what}: {_no_layer(key, layers)}")
        role = match.groupdict().get("role", "alpha")
        role = _ROLES.get(role, role)
        if role in factors.setdefault(layer, {}):
            raise InputError(
                f"{what}: it holds {factors[layer][role]!r} and {key!r}, which mean the same."
            )
        factors[layer][role] = key
    # The factors of each layer to an addition.
    strength = _strength(path, what)
    lora: Lora = {}
    for (part, key), keys in factors.items():
        rank = _checked_rank(keys, shapes, key, layers[part][key], what)
        alpha = alphas[keys["alpha"]] if "alpha" in keys else None
        scale = strength(part, key, rank) if alpha is None else alpha / rank
        addition = Addition(keys["down"], keys["up"], keys.get("mid", ""), rank, scale)
        lora.setdefault(part, {})[key] = addition
    return lora


def merged(
    base: dict[str, Tensor],
    additions: Mapping[str, Addition],
    lora: Mapping[str, Tensor],
    scale: float,
) -> dict[str, Tensor]:
    """Returns tensors that have the additions in them when they are read.

    Args:
      base: a part's tensors by diffusers' keys.
      additions: of `read_lora`, by the keys of `base`.
      lora: the tensors of the LoRA file, open as long as `base` is.
      scale: of all additions.
    """
    sums = dict(base)
    for key, addition in additions.items():
        sums[key] = _sum(base[key], addition, lora, scale)
    return sums


def _sum(tensor: Tensor, addition: Addition, lora: Mapping[str, Tensor], scale: float) -> Tensor:
    def read() -> np.ndarray:
        product = addition.product(lora, tensor.shape)
        return np.asarray(tensor.read(), np.float32) + np.float32(scale) * product

    return Tensor(tensor.shape, read)


def _layer_names(layers: Mapping[str, Shapes]) -> dict[str, tuple[str, str]]:
    """Returns `(part, key)` of each layer by all names that files give it."""
    names = {}
    for part, shapes in layers.items():
        aliases = _unet_aliases(shapes) if part == "unet" else _text_aliases(shapes)
        for alias, module in aliases:
            names[alias] = part, f"{module}.weight"
    return names


def _modules(shapes: Shapes) -> list[str]:
    """Returns the linear layers and convolutions."""
    return [
        key.removesuffix(".weight")
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) > 1 and "embeddings." not in key
    ]


def _unet_aliases(shapes: Shapes) -> list[tuple[str, str]]:
    counts: dict[int, int] = {}
    for key in shapes:
        if m := re.match(r"down_blocks\.(\d+)\.resnets\.(\d+)\.", key):
            counts[int(m[1])] = max(counts.get(int(m[1]), 0), int(m[2]) + 1)
    places = module_places([counts[level] for level in sorted(counts)])
    aliases = []
    for module in _modules(shapes):
        short = module.removesuffix(".0") if module.endswith("to_out.0") else module
        for name in {module, short}:
            aliases += [(name, module), (f"unet.{name}", module)]
        aliases.append((f"lora_unet_{module.replace('.', '_')}", module))
        # The authors' names, as some trainers write them.
        for old, new in places.items():
            if module == new or module.startswith(new + "."):
                name = old + module.removeprefix(new)
                aliases.append((f"lora_unet_{name.replace('.', '_')}", module))
    return aliases


def _text_aliases(shapes: Shapes) -> list[tuple[str, str]]:
    aliases = []
    for module in _modules(shapes):
        stem, _, leaf = module.rpartition(".")
        older = f"{stem}.{_TEXT_NAMES.get(leaf, leaf)}"
        for name in (module, older):
            dotted = (
                f"text_model.{name}",
                f"text_encoder.{name}",
                f"text_encoder.text_model.{name}",
            )
            aliases += [(alias, module) for alias in dotted]
        for prefix in ("lora_te", "lora_te1"):
            aliases.append((f"{prefix}_text_model_{module.replace('.', '_')}", module))
    return aliases


def _no_layer(key: str, layers: Mapping[str, Shapes]) -> str:
    parts = " and ".join(part.replace("_", " ") for part in layers)
    return (
        f"the tensor {key!r} fits no layer of the model's {parts}, so the file is for another "
        "model, or of a kind that is not implemented. Name a LoRA for this model."
    )


def _checked_rank(
    keys: Mapping[str, str],
    shapes: Shapes,
    key: str,
    weight: tuple[int, ...],
    what: str,
) -> int:
    """Returns the rank of a layer's factors. Raises InputError if their product doesn't fit it."""
    for role in ("down", "up"):
        if role not in keys:
            some = next(iter(keys.values()))
            raise InputError(
                f"{what}: it holds {some!r} and no {role!r} factor beside it, so it is incomplete. "
                "Fetch it again."
            )
    down, up = shapes[keys["down"]], shapes[keys["up"]]
    mid = shapes[keys["mid"]] if "mid" in keys else None
    rank = down[0] if down else 0
    fits = len(down) > 1 and len(up) > 1 and up[0] == weight[0] and rank > 0
    fits = fits and all(n == 1 for n in up[2:])
    if mid is None:
        fits = fits and up[1] == rank and math.prod(down[1:]) == math.prod(weight[1:])
        # A 1 x 1 convolution and a linear layer are the same sum.
        fits = fits and (len(down) == 2 or down[2:] == (*weight[2:], 1, 1)[: len(down) - 2])
    else:
        fits = fits and len(weight) == 4 and mid == (up[1], rank, *weight[2:])
        fits = fits and down[1:2] == weight[1:2] and all(n == 1 for n in down[2:])
    if not fits:
        raise InputError(
            f"{what}: {keys['down']!r} {down} and {keys['up']!r} {up} don't fit the layer "
            f"{key!r}, which is {weight}, so the file is for another model. "
            "Name a LoRA for this model."
        )
    return rank


def _alphas(path: pathlib.Path, tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns the strengths in a file by their keys; some trainers write them as integers."""
    keys = [key for key in tensors if key.endswith(".alpha")]
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            return {key: float(opened.get_tensor(key).reshape(())) for key in keys}
    except safetensors.SafetensorError:
        return {key: float(np.asarray(tensors[key].read()).reshape(())) for key in keys}
    except (ValueError, TypeError):
        raise InputError(f"pretrained.lora={path.name}: an alpha is not a number") from None


def _strength(path: pathlib.Path, what: str) -> Any:
    """Returns a function `(part, key, rank)` that gives the scale where a file has no alphas.

    diffusers notes peft's settings in the header; without notes the scale is 1.
    """
    text = metadata(path).get("lora_adapter_metadata", "")
    try:
        notes = json.loads(text) if text else {}
        notes = dict(notes)
    except (ValueError, TypeError):
        raise InputError(f"{what}: its lora_adapter_metadata is damaged. Fetch it again.") from None

    def scale(part: str, key: str, rank: int) -> float:
        return _noted_scale(notes, part, key.removesuffix(".weight"), rank, what)

    return scale


def _noted_scale(notes: Mapping[str, Any], part: str, module: str, rank: int, what: str) -> float:
    if notes.get(f"{part}.use_dora"):
        raise InputError(f"{what}: its header says that it is DoRA, which is not implemented")
    alpha = notes.get(f"{part}.lora_alpha", rank)
    for pattern, value in (notes.get(f"{part}.alpha_pattern") or {}).items():
        if any(
            re.fullmatch(rf"(.*\.)?({pattern})", name) for name in (module, f"text_model.{module}")
        ):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if notes.get(f"{part}.use_rslora") else rank)
