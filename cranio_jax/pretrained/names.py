"""The rule between our parameters' paths and torch's keys.

The path of a parameter is the key of the reference checkpoint except for its last word. A kernel's
axes are permuted: `conv1.kernel` `(height, width, in, out)` is `conv1.weight`
`(out, in, height, width)`.
"""

import re

import numpy as np

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}

# Names of older writers and today's replacements; files of both kinds are in circulation.
_OLD_NAMES = (
    (r"^text_model\.", ""),
    (r"(attentions\.\d+\.)query\.", r"\1to_q."),
    (r"(attentions\.\d+\.)key\.", r"\1to_k."),
    (r"(attentions\.\d+\.)value\.", r"\1to_v."),
    (r"(attentions\.\d+\.)proj_attn\.", r"\1to_out.0."),
)
# What torch's wrappers (data parallel, compiled, sharded, averaged) put into the keys.
_WRAPPERS = re.compile(
    r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module)\.)+"
    r"|(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Tensors that none of the networks here computes with: buffers, and the projection of a text
# encoder's pooled output.
_UNUSED = re.compile(
    r"(^|\.)(position_ids|num_batches_tracked)$|^n_averaged$|^text_projection(\.weight)?$"
)


def torch_key(path: str) -> str:
    """Returns the checkpoint's key of a parameter: `a.b.kernel` -> `a.b.weight`."""
    stem, _, leaf = path.rpartition(".")
    return f"{stem}.{_LEAVES.get(leaf, leaf)}".lstrip(".")


def current_key(key: str) -> str | None:
    """Returns a checkpoint's key as today's libraries write it, without the names of wrappers.

    None stands for a tensor that no network here computes with.
    """
    key = _WRAPPERS.sub("", key)
    for old, new in _OLD_NAMES:
        key = re.sub(old, new, key)
    return None if _UNUSED.search(key) else key


def to_torch(path: str, value: np.ndarray) -> np.ndarray:
    """Returns a parameter with torch's order of axes."""
    return value.transpose(-1, -2, *range(value.ndim - 2)) if path.endswith("kernel") else value


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in torch of a parameter of `shape`."""
    return (shape[-1], shape[-2], *shape[:-2]) if path.endswith("kernel") else tuple(shape)


def from_torch(path: str, value: np.ndarray) -> np.ndarray:
    """Returns a view of a torch tensor with our order of axes."""
    return value.transpose(*range(2, value.ndim), 1, 0) if path.endswith("kernel") else value
