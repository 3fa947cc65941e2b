"""Whose face is it? Generated faces as queries, real faces as the gallery, both as vectors whose direction is the identity."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from cranio_jax.errors import InputError
from cranio_jax.metrics.registry import Metric, register

VIEWS = ("same", "any")


class Faces(NamedTuple):
    """Embedded faces: `(n, d)` vectors, whose each is, and its view."""

    vectors: Float[Array, "n d"]
    subjects: Sequence[str]
    views: Sequence[str]

    def take(self, rows: Int[Array, "m"]) -> "Faces":
        """Some of them."""
        return Faces(
            self.vectors[rows], [self.subjects[i] for i in rows], [self.views[i] for i in rows]
        )


def one_image(faces: Faces, view: str, seed: int) -> Int[Array, "m"]:
    """The places of one face of each subject, drawn from `seed`; of each subject and view where views are kept apart."""
    rows = np.random.default_rng(seed).permutation(len(faces.subjects))
    key = lambda i: (faces.subjects[i], faces.views[i] if view == "same" else "")
    first = {key(i): i for i in rows}
    return np.array(sorted(first.values()))


def similarities(
    queries: Faces, gallery: Faces, view: str = "any"
) -> tuple[Float[Array, "q g"], Bool[Array, "q g"], Bool[Array, "q g"]]:
    """Cosines, whether they are of one subject, and whether the protocol lets the query see that gallery face.

    Args:
      queries, gallery: embedded faces.
      view: 'same' compares faces of one view alone, 'any' all with all.

    Raises:
      InputError: a protocol that is none, vectors that are not numbers, a query whose subject the gallery lacks.
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
    equal = lambda a, b: np.asarray(a)[:, None] == np.asarray(b)[None]
    same = equal(queries.subjects, gallery.subjects)
    allowed = equal(queries.views, gallery.views) if view == "same" else np.ones(same.shape, bool)
    if not (same & allowed).any(1).all():
        lacking = queries.subjects[int(np.argmin((same & allowed).any(1)))]
        raise InputError(
            f"retrieval: the gallery holds no face of the query's subject {lacking} in that protocol"
        )
    return cosines, same, allowed


def ranked(
    cosines: Float[Array, "q g"], same: Bool[Array, "q g"], allowed: Bool[Array, "q g"]
) -> Bool[Array, "q g"]:
    """For each query, which places of its list are its subject's; of equal cosines the subject's own come last.

    So a network that maps all faces to one vector finds nobody. Faces that are not allowed fill the end.
    """
    key = np.where(allowed, cosines, -np.inf)
    order = np.lexsort((same, -key), axis=1)
    return np.take_along_axis(same & allowed, order, 1)


def at_k(
    hits: Bool[Array, "q g"], allowed: Bool[Array, "q g"], ks: Sequence[int]
) -> dict[str, Float[Array, "q"]]:
    """`recall@k`, `map@k` and `mrr@k` of each query.

    recall@k: 1 where the subject is among the first k (the cumulative match characteristic at k). map@k: precision at
    each of the subject's places within k, summed and divided by the most that k places can hold. mrr@k: one over the
    first of the subject's places, 0 beyond k. Raises InputError where k is more than a query's gallery.
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
    """The share of queries whose subject is among the first 1, 2, ... places."""
    return np.maximum.accumulate(hits, 1).mean(0)


def separation(
    cosines: Float[Array, "q g"], same: Bool[Array, "q g"], allowed: Bool[Array, "q g"]
) -> dict[str, float]:
    """How far cosines with oneself and with others lie apart: `d_prime`, and `eer`, where both kinds of error are alike."""
    own, others = np.sort(cosines[same & allowed]), np.sort(cosines[~same & allowed])
    if not len(others):
        raise InputError("retrieval: the gallery holds the query's subject alone")
    spread = np.sqrt((own.var() + others.var()) / 2)
    d_prime = (own.mean() - others.mean()) / spread if spread else 0.0
    # A pair is accepted from the threshold on.
    thresholds = np.append(np.unique(np.concatenate([own, others])), np.inf)
    refused = np.searchsorted(own, thresholds) / len(own)
    accepted = 1.0 - np.searchsorted(others, thresholds) / len(others)
    after = int(np.argmax(refused >= accepted))
    before = max(after - 1, 0)
    gap = lambda i: accepted[i] - refused[i]
    part = gap(before) / (gap(before) - gap(after)) if gap(before) != gap(after) else 0.0
    return {
        "d_prime": float(d_prime),
        "eer": float(refused[before] + part * (refused[after] - refused[before])),
    }


RECALL = register(Metric(name="recall@", title="recall@", higher_is_better=True, digits=3))
MAP = register(Metric(name="map@", title="mAP@", higher_is_better=True, digits=3))
MRR = register(Metric(name="mrr@", title="MRR@", higher_is_better=True, digits=3))
D_PRIME = register(Metric(name="d_prime", title="d'", higher_is_better=True, digits=2))
EER = register(Metric(name="eer", title="EER", higher_is_better=False, digits=3))
