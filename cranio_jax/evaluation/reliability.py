"""Spread against error: are samples more alike where the face is more certain?

The samples of an honest model are as far from the truth as from each other. If the truth were one
more sample, the squared distance between it and the mean of n samples would be 1 + 1/n times their
variance (Fortin et al. 2014, for ensembles of weather forecasts).
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jaxtyping import Float
from scipy import stats

from cranio_jax import data
from cranio_jax.evaluation.assembly import embedding
from cranio_jax.evaluation.results import Reliability
from cranio_jax.files.pictures import read_face
from cranio_jax.metrics.estimates import Estimate
from cranio_jax.metrics.features import Features
from cranio_jax.metrics.resampling import bootstrap_ratio, subject_means

PIXELS = "pixels"
_BINS = 10
_PIXELS_OF_FACE = 2_000  # that are drawn of each face


class Deviations(NamedTuple):
    """Variance and squared error of things that were sampled, each summed over channels.

    Attributes:
      variance: of n samples, times 1 + 1/n; what an honest model's squared error is in the mean.
      error: the squared distance of the samples' mean to the truth.
    """

    variance: Float[np.ndarray, "*things"]
    error: Float[np.ndarray, "*things"]


def deviations(
    samples: Float[np.ndarray, "n *things c"], truth: Float[np.ndarray, "*things c"]
) -> Deviations:
    """Returns the deviations of at least two samples."""
    count = len(samples)
    variance = samples.var(0, ddof=1).sum(-1) * (1.0 + 1.0 / count)
    return Deviations(variance, ((samples.mean(0) - truth) ** 2).sum(-1))


def summary(found: Deviations, subjects: Sequence[str], rounds: int, seed: int) -> Reliability:
    """Returns what deviations of `(examples, things)` say; `subjects` has one for each example."""
    variance, error = (np.asarray(a, np.float64).reshape(len(subjects), -1) for a in found)
    # Bins of equally many things, from certain to uncertain.
    order = np.argsort(variance, axis=None)
    points = [
        (float(np.sqrt(variance.flat[part].mean())), float(np.sqrt(error.flat[part].mean())))
        for part in np.array_split(order, min(_BINS, len(order)))
    ]
    over, under = (subject_means(a.mean(1), subjects) for a in (error, variance))
    ratio, low, high = np.sqrt(bootstrap_ratio(over, under, rounds, seed))
    rank = stats.spearmanr(variance, error, axis=None).statistic
    return Reliability(
        points=points,
        ratio=Estimate(mean=float(ratio), low=float(low), high=float(high)),
        correlation=float(rank),
    )


def score(
    config: ml_collections.ConfigDict,
    features: Features,
    mesh: jax.sharding.Mesh,
    examples: Sequence[dict[str, Any]],
    samples: Sequence[Sequence[pathlib.Path]],
    vectors: Mapping[str, Float[np.ndarray, "n _"]],
) -> dict[str, Reliability]:
    """Returns the reliability of pixels, and of identity by each embedder.

    It is empty if samples are all the same: a method without noise claims nothing.

    Args:
      config: of the run.
      features: with the embedders.
      mesh: to embed faces on.
      examples: with the true faces.
      samples: files of faces, by sample and example.
      vectors: of the true faces, by embedder.
    """
    subjects = [example["subject"] for example in examples]
    rounds, seed = config.evaluate.bootstrap, config.seed

    # Pixels of the head, or of all of the picture.
    rng = np.random.default_rng(seed)
    parts = []
    for example, files in zip(examples, zip(*samples, strict=True), strict=True):
        inside = example.get("head_mask", np.ones_like(example["face"][..., :1]))[..., 0] > 0
        chosen = rng.choice(np.flatnonzero(inside), _PIXELS_OF_FACE)
        faces = np.stack([read_face(file) for file in files])
        pixels = faces.reshape(len(files), -1, 3)[:, chosen] / 255.0
        parts.append(deviations(pixels, example["face"].reshape(-1, 3)[chosen] / 255.0))
    of_pixels = Deviations(*(np.stack(part) for part in zip(*parts, strict=True)))
    if not of_pixels.variance.any():
        return {}
    found = {PIXELS: summary(of_pixels, subjects, rounds, seed)}

    # Identity.
    if features.embedders:
        embed = embedding(features, mesh)
        size = config.evaluate.batch_size
        each = [
            data.collected(embed, _Faces(files), size, mesh, f"embedding sample {number}")
            for number, files in enumerate(samples, 1)
        ]
        for name in features.embedders:
            of_faces = deviations(np.stack([one[name] for one in each]), vectors[name])
            found[f"identity/{name}"] = summary(of_faces, subjects, rounds, seed)
    return found


class _Faces:
    """Faces of files, read on demand."""

    def __init__(self, files: Sequence[pathlib.Path]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"face": read_face(self._files[index])}
