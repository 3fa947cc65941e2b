"""Retrieval of real faces by generated ones, from vectors whose direction is the identity."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from cranio_jax.errors import InputError
from cranio_jax.metrics.registry import Metric, register

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
                f"retrieval: a vector of the {name} is zero or not finite; was the face a picture?"
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
    """Returns `recall@k`, `map@k` and `mrr@k` of each query.

    recall@k is 1 if the subject is among the first k (the cumulative match characteristic at k).
    map@k is the sum of the precision at each of the subject's places within k, divided by the most
    that k places can hold. mrr@k is one over the subject's first place, or 0 beyond k. Raises
    InputError if k is more than the size of a query's gallery.
    """
    smallest = int(allowed.sum(1).min())
    for k in ks:
        if not 1 <= k <= smallest:
            raise InputError(f"retrieval: k={k}, but a gallery holds {smallest} faces")
    places = np.arange(1, hits.shape[1] + 1)
    precision = np.cumsum(hits, 1) / places * hits
    first = np.argmax(hits, 1) + 1
    values = {}
    for k in ks:
        values[f"recall@{k}"] = (first <= k).astype(np.float64)
        values[f"map@{k}"] = precision[:, :k].sum(1) / np.minimum(hits.sum(1), k)
        values[f"mrr@{k}"] = (first <= k) / first
    return values


def match_curve(hits: Bool[Array, "q g"]) -> Float[Array, "g"]:
    """Returns the share of queries whose subject is among the first 1, 2, ... places."""
    return np.maximum.accumulate(hits, 1).mean(0)


def separation(
    cosines: Float[Array, "q g"], same: Bool[Array, "q g"], allowed: Bool[Array, "q g"]
) -> dict[str, float]:
    """Returns how well cosines separate a subject's own faces from others'.

    `d_prime` is the distance of their means in standard deviations. `eer` is the error rate at the
    threshold where both kinds of error are equal. Raises InputError if there are no others.
    """
    same_subject = np.sort(cosines[same & allowed])
    others = np.sort(cosines[~same & allowed])
    if not len(others):
        raise InputError("retrieval: the gallery holds the query's subject alone")
    spread = np.sqrt((same_subject.var() + others.var()) / 2)
    d_prime = (same_subject.mean() - others.mean()) / spread if spread else 0.0
    # A pair is accepted from the threshold on.
    thresholds = np.append(np.unique(np.concatenate([same_subject, others])), np.inf)
    refused = np.searchsorted(same_subject, thresholds) / len(same_subject)
    accepted = 1.0 - np.searchsorted(others, thresholds) / len(others)
    after = int(np.argmax(refused >= accepted))
    before = max(after - 1, 0)
    gaps = accepted - refused
    part = 0.0
    if gaps[before] != gaps[after]:
        part = gaps[before] / (gaps[before] - gaps[after])
    return {
        "d_prime": float(d_prime),
        "eer": float(refused[before] + part * (refused[after] - refused[before])),
    }


RECALL = register(Metric(name="recall@", title="recall@", higher_is_better=True, digits=3))
MAP = register(Metric(name="map@", title="mAP@", higher_is_better=True, digits=3))
MRR = register(Metric(name="mrr@", title="MRR@", higher_is_better=True, digits=3))
D_PRIME = register(Metric(name="d_prime", title="d'", higher_is_better=True, digits=2))
EER = register(Metric(name="eer", title="EER", higher_is_better=False, digits=3))
