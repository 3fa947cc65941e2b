"""Which feature network a file holds, by the names, shapes and in part the values of its tensors.

A file is recognised only if every one of its tensors is accounted for.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from cranio_jax import models
from cranio_jax.errors import InputError
from cranio_jax.models.arcface import IRESNET_LAYERS
from cranio_jax.models.functional import shared_network
from cranio_jax.pretrained.files import Tensor, sha256
from cranio_jax.pretrained.load import current_tensors
from cranio_jax.pretrained.names import torch_key, torch_shape

# Content of files whose publishers put no hash into their names.
KNOWN = {
    "w600k_r50.onnx": "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
}
# Layers after the trunk of torchvision's classifiers, which no distance needs.
CLASSIFIERS: dict[str, dict[int, tuple[int, ...]]] = {
    "vgg": {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)},
    "alex": {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)},
    "squeeze": {1: (1000, 512, 1, 1)},
}
# The published heads of LPIPS have the same names and shapes in both releases. Each number is the
# sum over a head of its channels' weights, weighted by 1/n, 2/n, ... n/n.
RELEASES = {
    "v0.1": {
        "vgg": (3.199, 4.217, 8.783, 25.979, 23.245),
        "alex": (1.487, 8.371, 20.54, 13.127, 9.511),
        "squeeze": (2.918, 0.225, 7.132, 29.741, 15.332, 11.268, 8.967),
    },
    "v0.0": {
        "vgg": (1.567, 0.712, 0.583, 10.238, 12.613),
        "alex": (1.479, 5.329, 11.893, 7.645, 6.666),
        "squeeze": (3.258, 0.201, 3.631, 17.057, 9.012, 7.079, 6.253),
    },
}
_EXCITATION = re.compile(
    r"\.(?:se|se_?layer|se_?module|se_?block|squeeze_?\w*excit\w*)\.|\.res_layer\.5\."
)
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.prelu\.weight")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A known network, or a part of one.

    Attributes:
      part: 'inception', 'embedder', 'trunk' or 'heads'.
      network: of `models.EMBEDDERS` or `models.TRUNKS`; 'inception' for the Inception.
      title: in words.
      probe: the key of a tensor without which a file can't be of this kind.
      make: builds the network from the `rngs` of its layers.
      prefix: of the paths of the part's parameters.
      published: False for heads whose values are of neither release of LPIPS.
    """

    part: str
    network: str
    title: str
    probe: str = ""
    make: Callable[..., Any] | None = None
    prefix: str = ""
    published: bool = True

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of its tensors by torch's keys."""
        shapes = shared_network(self.make).shapes() if self.make else {}
        return {
            torch_key(path): torch_shape(path, shape)
            for path, shape in shapes.items()
            if path.startswith(self.prefix)
        }

    @property
    def extras(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of other tensors that published files hold."""
        layers = CLASSIFIERS[self.network] if self.part == "trunk" else {}
        weights = {f"classifier.{i}.weight": shape for i, shape in layers.items()}
        return weights | {f"classifier.{i}.bias": shape[:1] for i, shape in layers.items()}

    def tensors_in(self, tensors: dict[str, Tensor], before: str) -> dict[str, Tensor]:
        """Returns those with the names and shapes of this kind's, after the prefix `before`."""
        return {
            key: tensors[before + key]
            for key, shape in self.shapes.items()
            if before + key in tensors and tensors[before + key].shape == shape
        }


@functools.cache
def kinds() -> tuple[Kind, ...]:
    """Returns all that can be recognised."""
    title = "the Inception of the FID"
    all_kinds = [
        Kind("inception", "inception", title, "Conv2d_1a_3x3.conv.weight", models.FIDInception)
    ]
    probes = {f"iresnet{n}": f"layer3.{c[2] - 1}.prelu.weight" for n, c in IRESNET_LAYERS.items()}
    for name, network in models.EMBEDDERS.items():
        probe = probes.get(name, "linear7.conv.weight")
        all_kinds.append(Kind("embedder", name, f"an ArcFace network, {name}", probe, network))
    for trunk in models.TRUNKS:
        make = functools.partial(models.LPIPS, trunk)
        probes = {"features.": "features.0.weight", "lin": "lin0.model.1.weight"}
        for part, title, prefix in (
            ("trunk", f"the trunk {trunk} of LPIPS", "features."),
            ("heads", f"LPIPS's heads for {trunk}", "lin"),
        ):
            all_kinds.append(Kind(part, trunk, title, probes[prefix], make, prefix))
    return tuple(all_kinds)


def recognise(tensors: dict[str, Tensor], what: str) -> list[tuple[Kind, dict[str, Tensor]]]:
    """Returns the kinds that a file holds, each with its tensors by torch's keys.

    One file may hold several parts of LPIPS, each after the trunk's name. Raises InputError,
    naming `what` and what was found, where a tensor is unknown, and for LPIPS's heads
    of v0.0, which were fitted to other inputs.
    """
    current = current_tensors(tensors, what)
    parts: list[tuple[Kind, dict[str, Tensor]]] = []
    embedder: tuple[Kind, dict[str, Tensor]] | None = None
    rest = dict(current)
    for kind in kinds():
        for before in _prefixes(kind):
            of_kind = kind.tensors_in(current, before) if before + kind.probe in current else {}
            if not of_kind or len(of_kind) < len(kind.shapes):
                continue
            if kind.part != "embedder":
                parts.append((_with_release(kind, of_kind, what), of_kind))
            elif embedder is None or len(of_kind) > len(embedder[1]):
                # A deep network holds all that a shallower one does.
                embedder = kind, of_kind
            for key, shape in (kind.shapes | kind.extras).items():
                if before + key in rest and rest[before + key].shape == shape:
                    del rest[before + key]
    parts += [embedder] if embedder else []
    if rest or not parts:
        raise InputError(_why_not(current, rest, what))
    return parts


def _prefixes(kind: Kind) -> tuple[str, ...]:
    return ("", f"{kind.network}.") if kind.part in ("trunk", "heads") else ("",)


def _with_release(kind: Kind, of_kind: dict[str, Tensor], what: str) -> Kind:
    """Returns the kind with what is known of its release. Raises InputError for v0.0."""
    if kind.part != "heads":
        return kind
    sums = []
    for key in kind.shapes:
        values = np.asarray(of_kind[key].read(), np.float32).ravel()
        sums.append(values @ np.linspace(1 / len(values), 1, len(values)))
    release = [r for r, s in RELEASES.items() if np.allclose(sums, s[kind.network], rtol=1e-2)]
    if release == ["v0.0"]:
        raise InputError(
            f"{what} holds {kind.title} of release v0.0, fitted to inputs that were scaled "
            "wrongly. Use those of v0.1."
        )
    if release:
        return kind
    title = f"{kind.title} (not the published ones)"
    return dataclasses.replace(kind, title=title, published=False)


def _why_not(current: dict[str, Tensor], rest: dict[str, Tensor], what: str) -> str:
    """Returns why a file is of no known kind, in one sentence."""
    known = "; ".join(kind.title for kind in kinds())
    excited = [key for key in current if _EXCITATION.search(key)]
    if excited:
        return (
            f"{what} is a network with squeeze-and-excitation, such as {min(excited)!r}, which is "
            f"not implemented; known are {known}"
        )
    if "input_layer.0.weight" in current and any(key.startswith("body.") for key in current):
        return (
            f"{what} is an IR network in face.evoLVe's layout (input_layer, body, output_layer), "
            f"which is not implemented; known are {known}"
        )
    blocks = _blocks(current)
    if all(blocks) and blocks not in IRESNET_LAYERS.values():
        depths = "; ".join(f"{n}: {counts}" for n, counts in IRESNET_LAYERS.items())
        return f"{what} is an IResNet of {blocks} blocks in its stages; known are {depths}"
    # A deeper network may share as many tensors: on a tie, the one that lacks fewer is nearer.
    near, shared, before = max(
        ((k, k.tensors_in(current, b), b) for k in kinds() for b in _prefixes(k)),
        key=lambda candidate: (len(candidate[1]), -len(candidate[0].shapes)),
    )
    if 2 * len(shared) < len(near.shapes):
        some = min(current, default="none")
        return (
            f"{what} holds {len(current)} tensors, such as {some!r}, of no known network: {known}"
        )
    for key, shape in near.shapes.items():
        if before + key not in current:
            return f"{what} is not {near.title}: it lacks the tensor {key!r} of shape {shape}"
        if key not in shared:
            seen = current[before + key].shape
            return f"{what} is not {near.title}: its tensor {key!r} is {seen}, expected {shape}"
    return (
        f"{what} holds {near.title} and {len(rest)} more tensors, such as {min(rest)!r}, so it is "
        "another network"
    )


def _blocks(tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """Returns how many blocks each stage of an IResNet has; zeros for another network."""
    places = {match.groups() for key in tensors if (match := _BLOCK.fullmatch(key))}
    return tuple(sum(stage == str(i) for stage, _ in places) for i in range(1, 5))


def check_hash(file: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's content. Raises InputError if its name states another.

    A name as torch's hub gives it, `vgg16-397923af.pth`, holds the beginning of the hash; some
    other names are KNOWN.
    """
    digest = sha256(file)
    named = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
    promised = named[1] if named else KNOWN.get(file.name, "")
    if not digest.startswith(promised):
        raise InputError(
            f"{file.name}: the content's SHA-256 begins with {digest[:8]}, not as the name says; "
            "fetch it again"
        )
    return digest
