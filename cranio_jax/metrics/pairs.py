"""Metrics of pairs: a generated face and the true one."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Array, Float

from cranio_jax.metrics.images import MS_SSIM_SIDE, SSIM_SIDE, ms_ssim, psnr, ssim
from cranio_jax.metrics.registry import PairMetric, Weights, register
from cranio_jax.models.alignment import cosine_distance

if TYPE_CHECKING:
    from cranio_jax.metrics.features import Features

HEAD = "head"
LPIPS_WEIGHTS = Weights(
    "lpips",
    "a trunk of torchvision (vgg16, alexnet or squeezenet1_1) and the lpips package's heads for it",
)
ARCFACE_WEIGHTS = Weights(
    "arcface", "an ArcFace network (insightface's .pth or w600k_r50.onnx, or a MobileFaceNet)"
)


class Pairs(NamedTuple):
    """A batch of generated faces and the true ones, inside of jit.

    Attributes:
      features: the networks.
      params: of the networks, from `Features.load`.
      faces, truth: `(b, h, w, 3)` in [0, 1].
      head: `(b, h, w, 1)`, 1 at the true head, else 0; None if that is not known.
      of_faces, of_truth: what `Features.describe` gives for both.
    """

    features: "Features"
    params: Any
    faces: Float[Array, "b h w 3"]
    truth: Float[Array, "b h w 3"]
    head: Float[Array, "b h w 1"] | None
    of_faces: dict[str, Any]
    of_truth: dict[str, Any]


def whole_pictures(features: "Features", masked: bool) -> Iterable[str]:
    """The `parts` of a metric of whole pictures."""
    return [""]


def whole_and_head(features: "Features", masked: bool) -> Iterable[str]:
    """The `parts` of a metric of whole pictures, and of the head where its mask is known."""
    return ["", HEAD] if masked else [""]


def of_pictures(compute: Callable[..., Array]) -> Callable[[Pairs, str], Array]:
    """Returns a metric's `compute` from a function of two batches of pictures in [0, 1].

    For the part "head" the function gets the mask of the head as its third argument.
    """

    def compute_pairs(pairs: Pairs, part: str) -> Array:
        mask = (pairs.head,) if part == HEAD else ()
        return compute(pairs.faces, pairs.truth, *mask)

    return compute_pairs


def _lpips(pairs: Pairs, part: str) -> Float[Array, "b"]:
    trunk = pairs.features.trunk_of(part)
    network = pairs.features.bind(trunk, pairs.params)
    return network.distance(pairs.of_faces["taps"][trunk], pairs.of_truth["taps"][trunk])


def _lpips_parts(features: "Features", masked: bool) -> Iterable[str]:
    return [features.lpips_part(trunk) for trunk in features.heads]


def _cosine(name: str) -> Callable[[Pairs, str], Float[Array, "b"]]:
    def compute(pairs: Pairs, part: str) -> Float[Array, "b"]:
        key = f"{name}/{part}"
        return 1.0 - cosine_distance(pairs.of_faces[key], pairs.of_truth[key])

    return compute


def _embedders(name: str) -> Callable[["Features", bool], Iterable[str]]:
    def parts(features: "Features", masked: bool) -> Iterable[str]:
        keys = [key.partition("/") for key in features.embedders]
        return [part for kind, _, part in keys if kind == name]

    return parts


PSNR = register(
    PairMetric(
        name="psnr",
        title="PSNR (dB)",
        higher_is_better=True,
        digits=2,
        main=True,
        parts=whole_and_head,
        compute=of_pictures(psnr),
    )
)
SSIM = register(
    PairMetric(
        name="ssim",
        title="SSIM",
        higher_is_better=True,
        digits=3,
        main=True,
        parts=whole_and_head,
        compute=of_pictures(ssim),
        least_side=SSIM_SIDE,
    )
)
MS_SSIM = register(
    PairMetric(
        name="ms-ssim",
        title="MS-SSIM",
        higher_is_better=True,
        digits=3,
        parts=whole_pictures,
        compute=of_pictures(ms_ssim),
        least_side=MS_SSIM_SIDE,
    )
)
LPIPS = register(
    PairMetric(
        name="lpips",
        title="LPIPS",
        higher_is_better=False,
        digits=3,
        weights=LPIPS_WEIGHTS,
        main=True,
        parts=_lpips_parts,
        compute=_lpips,
    )
)
ARCFACE = register(
    PairMetric(
        name="arcface",
        title="ArcFace cosine",
        higher_is_better=True,
        digits=3,
        weights=ARCFACE_WEIGHTS,
        main=True,
        parts=_embedders("arcface"),
        compute=_cosine("arcface"),
    )
)
IDENTITY = register(
    PairMetric(
        name="identity",
        title="identity cosine",
        higher_is_better=True,
        digits=3,
        main=True,
        parts=_embedders("identity"),
        compute=_cosine("identity"),
    )
)
