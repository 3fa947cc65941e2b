"""Spread against error: are samples more alike where the face is more certain?

The samples of an honest model are as far from the truth as from each other. If the truth were one
more sample, the squared distance between it and the mean of n samples would be 1 + 1/n times their
variance (Fortin et al. 2014, for ensembles of weather forecasts).
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jaxtyping import Float

from cranio_jax import data
from cranio_jax.distributed import sharding
from cranio_jax.evaluation.results import Reliability
from cranio_jax.files.pictures import read_face
from cranio_jax.methods import Batch
from cranio_jax.metrics.estimates import Estimate
from cranio_jax.metrics.resampling import bootstrap_ratio, subject_means

PIXELS = "pixels"
_BINS = 10
_PIXELS_OF_FACE = 2_000  # that are drawn of each face
_READERS = 8  # threads


class Deviations(NamedTuple):
    """Expected and true squared errors of a mean of samples, each summed over channels.

    Attributes:
      expected: the variance of n samples, times 1 + 1/n.
      error: the squared distance of the samples' mean to the truth.
      samples: n.
    """

    expected: Float[np.ndarray, "*places"]
    error: Float[np.ndarray, "*places"]
    samples: int


class Vectors(NamedTuple):
    """Vectors that are known already, by embedder: of true faces and of the first sample."""

    truth: Mapping[str, Float[np.ndarray, "n _"]]
    first: Mapping[str, Float[np.ndarray, "n _"]]


def deviations(
    samples: Float[np.ndarray, "n *places c"], truth: Float[np.ndarray, "*places c"]
) -> Deviations:
    """Returns the deviations of at least two samples."""
    count = len(samples)
    expected = samples.var(0, ddof=1).sum(-1) * (1.0 + 1.0 / count)
    return Deviations(expected, ((samples.mean(0) - truth) ** 2).sum(-1), count)


def summary(
    deviations: Deviations, subjects: Sequence[str], *, rounds: int, seed: int
) -> Reliability:
    """Returns what deviations of shape `(examples, places)` say.

    Args:
      deviations: of pixels, or of one vector for each example.
      subjects: of each example.
      rounds: of the bootstrap.
      seed: of the bootstrap.
    """
    expected = np.asarray(deviations.expected, np.float64).reshape(len(subjects), -1)
    error = np.asarray(deviations.error, np.float64).reshape(len(subjects), -1)

    from scipy import stats  # only here: it slows each program's start

    # Tenths of equally many places, from certain to uncertain.
    order = np.argsort(expected, axis=None)
    points = [
        (float(np.sqrt(expected.flat[part].mean())), float(np.sqrt(error.flat[part].mean())))
        for part in np.array_split(order, min(_BINS, len(order)))
    ]

    over, under = (subject_means(values.mean(1), subjects) for values in (error, expected))
    ratio, low, high = np.sqrt(bootstrap_ratio(over, under, rounds, seed))
    return Reliability(
        points=points,
        ratio=Estimate(mean=float(ratio), low=float(low), high=float(high)),
        correlation=float(stats.spearmanr(expected, error, axis=None).statistic),
        spread=float(np.sqrt(expected.mean() / (1.0 + 1.0 / deviations.samples))),
    )


def score(
    config: ml_collections.ConfigDict,
    examples: Sequence[dict[str, Any]],
    samples: Sequence[Sequence[pathlib.Path]],
    vectors: Vectors,
    embed: Callable[[Batch], dict[str, jax.Array]],
) -> dict[str, Reliability]:
    """Returns the reliability of pixels of the head, and of identity by each embedder.

    Without masks of heads, all pixels count. The result is empty if the samples are all the same:
    a method without noise claims nothing.

    Args:
      config: of the run.
      examples: with the true faces.
      samples: files of faces, by sample and example.
      vectors: of the true faces, and of the first sample.
      embed: the jitted function from a batch to vectors of its faces, by embedder.
    """
    subjects = [example["subject"] for example in examples]
    bootstrap = dict(rounds=config.evaluate.bootstrap, seed=config.seed)
    pixels = _of_pixels(examples, samples, config.seed)
    if pixels is None:
        return {}
    reliability = {PIXELS: summary(pixels, subjects, **bootstrap)}
    if not vectors.truth:
        return reliability

    # Identity.
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    size = config.evaluate.batch_size
    each: list[Mapping[str, np.ndarray]] = [vectors.first]
    for number, files in enumerate(samples[1:], 2):
        each.append(data.collected(embed, _Faces(files), size, mesh, f"embedding sample {number}"))
    for name, truth in vectors.truth.items():
        identity = deviations(np.stack([one[name] for one in each]), truth)
        reliability[name] = summary(identity, subjects, **bootstrap)
    return reliability


def _of_pixels(
    examples: Sequence[dict[str, Any]], samples: Sequence[Sequence[pathlib.Path]], seed: int
) -> Deviations | None:
    """Returns the deviations of pixels drawn from each head; None if all samples are the same."""
    rng = np.random.default_rng(seed)
    differ = False
    expected, error = [], []
    with futures.ThreadPoolExecutor(_READERS) as readers:
        for example, files in zip(examples, zip(*samples, strict=True), strict=True):
            truth = example["face"]
            inside = np.flatnonzero(example.get("head_mask", np.ones_like(truth[..., 0])))
            if not inside.size:  # an empty mask
                inside = np.arange(truth[..., 0].size)
            drawn = rng.choice(inside, _PIXELS_OF_FACE)
            faces = np.stack(list(readers.map(read_face, files)))
            differ = differ or bool((faces != faces[:1]).any())
            of_face = deviations(
                faces.reshape(len(files), -1, 3)[:, drawn] / 255.0,
                truth.reshape(-1, 3)[drawn] / 255.0,
            )
            expected.append(of_face.expected)
            error.append(of_face.error)
    return Deviations(np.stack(expected), np.stack(error), len(samples)) if differ else None


class _Faces:
    """Faces of files, read on demand."""

    def __init__(self, files: Sequence[pathlib.Path]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"face": read_face(self._files[index])}
