"""Retrieval of real faces by generated ones, from vectors whose direction is the identity."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from cranio_jax.errors import InputError
from cranio_jax.metrics.registry import RankMetric, SeparationMetric, of_kind, register

VIEWS = ("same", "any")


class Faces(NamedTuple):
    """Embedded faces: `(n, d)` vectors, and the subject and the view of each."""

    vectors: Float[Array, "n d"]
    subjects: Sequence[str]
    views: Sequence[str]

    def take(self, rows: Int[Array, "m"]) -> "Faces":
        """Returns the faces at `rows`."""
        subjects = [self.subjects[i] for i in rows]
        views = [self.views[i] for i in rows]
        return Faces(self.vectors[rows], subjects, views)


def one_image(faces: Faces, view: str, seed: int) -> Int[Array, "m"]:
    """Returns the places of one face of each subject, drawn from `seed`.

    If `view` is 'same', there is one of each subject and view.
    """
    rows = np.random.default_rng(seed).permutation(len(faces.subjects))
    if view == "same":
        chosen = {(faces.subjects[i], faces.views[i]): i for i in rows}
    else:
        chosen = {(faces.subjects[i], ""): i for i in rows}
    return np.array(sorted(chosen.values()))


def similarities(
    queries: Faces, gallery: Faces, view: str = "any"
) -> tuple[Float[Array, "q g"], Bool[Array, "q g"], Bool[Array, "q g"]]:
    """Returns cosines, whether both faces are one subject's, and whether the pair is allowed.

    Args:
      queries, gallery: embedded faces.
      view: 'same' allows pairs of one view only, 'any' allows all pairs.

    Raises:
      InputError: an unknown view, vectors that are not numbers, or a query whose subject the
        gallery lacks.
    """
    if view not in VIEWS:
        raise InputError(f"retrieval view={view!r} is not one of {', '.join(VIEWS)}")

    def unit(name: str, vectors) -> Float[Array, "n d"]:
        vectors = np.asarray(vectors, np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.all(np.isfinite(lengths) & (lengths > 0)):
            raise InputError(
                f"retrieval: a vector of the {name} is zero or not finite. Check the face."
            )
        return vectors / lengths

    cosines = unit("queries", queries.vectors) @ unit("gallery", gallery.vectors).T
    same = _equal(queries.subjects, gallery.subjects)
    allowed = np.ones(same.shape, bool)
    if view == "same":
        allowed = _equal(queries.views, gallery.views)
    if not (same & allowed).any(1).all():
        lacking = queries.subjects[int(np.argmin((same & allowed).any(1)))]
        raise InputError(
            f"retrieval: the gallery holds no face of the query's subject {lacking} in that "
            "protocol"
        )
    return cosines, same, allowed


def _equal(a: Sequence[str], b: Sequence[str]) -> Bool[Array, "q g"]:
    return np.asarray(a)[:, None] == np.asarray(b)[None]


def ranked(
    cosines: Float[Array, "q g"], same: Bool[Array, "q g"], allowed: Bool[Array, "q g"]
) -> Bool[Array, "q g"]:
    """Returns, for each query's ranking, which places hold its own subject.

    Among equal cosines the own subject comes last, so that a network that maps all faces to one
    vector finds nobody. Faces that are not allowed come at the end.
    """
    key = np.where(allowed, cosines, -np.inf)
    order = np.lexsort((same, -key), axis=1)
    return np.take_along_axis(same & allowed, order, 1)


def at_k(
    hits: Bool[Array, "q g"], allowed: Bool[Array, "q g"], ks: Sequence[int]
) -> dict[str, Float[Array, "q"]]:
    """Returns each registered rank metric of each query, for each of `ks`.

    Raises InputError if k is more than the size of a query's gallery.
    """
    smallest = int(allowed.sum(1).min())
    for k in ks:
        if not 1 <= k <= smallest:
            raise InputError(
                f"evaluate.retrieval.ks: k={k} exceeds a gallery of {smallest} faces. Set smaller "
                "numbers, such as (1,)."
            )
    metrics = of_kind(RankMetric)
    return {f"{metric.name}{k}": metric.compute(hits, k) for k in ks for metric in metrics}


def recall_at(hits: Bool[Array, "q g"], k: int) -> Float[Array, "q"]:
    """Returns 1 where the subject is among the first k (the cumulative match characteristic)."""
    return np.asarray(hits[:, :k].any(1), np.float64)


def average_precision_at(hits: Bool[Array, "q g"], k: int) -> Float[Array, "q"]:
    """Returns the sum of the precision at each of the subject's places within k.

    It is divided by the most that k places can hold.
    """
    hits_so_far = np.cumsum(hits, axis=1)
    precision = hits_so_far / np.arange(1, hits.shape[1] + 1) * hits
    return precision[:, :k].sum(1) / np.minimum(hits.sum(1), k)


def reciprocal_rank_at(hits: Bool[Array, "q g"], k: int) -> Float[Array, "q"]:
    """Returns one over the subject's first place, or 0 beyond k."""
    first = np.argmax(hits, axis=1) + 1
    return (first <= k) / first


def match_curve(hits: Bool[Array, "q g"]) -> Float[Array, "g"]:
    """Returns the share of queries whose subject is among the first 1, 2, ... places."""
    return np.maximum.accumulate(hits, 1).mean(0)


def separation(
    cosines: Float[Array, "q g"], same: Bool[Array, "q g"], allowed: Bool[Array, "q g"]
) -> dict[str, float]:
    """Returns each registered separation metric. Raises InputError if there are no others."""
    own = np.sort(cosines[same & allowed])
    others = np.sort(cosines[~same & allowed])
    if not len(others):
        raise InputError("retrieval: the gallery holds only the query's subject")
    return {metric.name: metric.compute(own, others) for metric in of_kind(SeparationMetric)}


def d_prime(own: Float[Array, "n"], others: Float[Array, "m"]) -> float:
    """Returns the distance of the means in standard deviations."""
    spread = np.sqrt((own.var() + others.var()) / 2)
    return float((own.mean() - others.mean()) / spread) if spread else 0.0


def equal_error_rate(own: Float[Array, "n"], others: Float[Array, "m"]) -> float:
    """Returns the error rate at the threshold where both kinds of error are equal."""
    # A pair is accepted at or above the threshold.
    thresholds = np.append(np.unique(np.concatenate([own, others])), np.inf)
    refused = np.searchsorted(own, thresholds) / len(own)
    accepted = 1.0 - np.searchsorted(others, thresholds) / len(others)
    after = int(np.argmax(refused >= accepted))
    before = max(after - 1, 0)
    gaps = accepted - refused
    part = 0.0
    if gaps[before] != gaps[after]:
        part = gaps[before] / (gaps[before] - gaps[after])
    return float(refused[before] + part * (refused[after] - refused[before]))


def _rank_metric(name: str, title: str, compute: Callable) -> None:
    register(RankMetric(name=name, title=title, higher_is_better=True, digits=3, compute=compute))


_rank_metric("recall@", "recall@", recall_at)
_rank_metric("map@", "mAP@", average_precision_at)
_rank_metric("mrr@", "MRR@", reciprocal_rank_at)
register(
    SeparationMetric(name="d_prime", title="d'", higher_is_better=True, digits=2, compute=d_prime)
)
register(
    SeparationMetric(
        name="eer", title="EER", higher_is_better=False, digits=3, compute=equal_error_rate
    )
)
