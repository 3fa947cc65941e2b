"""Retrieval protocols: galleries, chance level, ceiling and controls."""

from collections.abc import Callable, Sequence
from math import comb
from typing import NamedTuple

import jax
import ml_collections
import msgspec
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from cranio_jax import data
from cranio_jax.errors import InputError
from cranio_jax.evaluation.controls import SHUFFLED
from cranio_jax.evaluation.examples import read_examples
from cranio_jax.evaluation.results import Retrieval
from cranio_jax.methods import Batch
from cranio_jax.metrics import retrieval as r
from cranio_jax.metrics.estimates import Estimate, mean_interval
from cranio_jax.metrics.resampling import permutation_test, subject_means

CEILING = "another real face of the subject"
GALLERIES = ("all", "one")


def distractor_faces(
    config: ml_collections.ConfigDict,
    embed: Callable[[Batch], dict[str, jax.Array]],
    mesh: jax.sharding.Mesh,
) -> dict[str, r.Faces]:
    """Returns faces of people outside the queries, by embedder; empty if none are set.

    Args:
      config: of the run; `evaluate.retrieval.distractors` names their records.
      embed: the jitted function from a batch to vectors of its faces, by embedder.
      mesh: where batches lie.
    """
    d = config.evaluate.retrieval.distractors
    if not d.builder:
        return {}
    settings = config.copy_and_resolve_references()
    with settings.unlocked():
        settings.data = ml_collections.ConfigDict(d.to_dict() | {"validation_subjects": 0})
    examples = data.Examples(data.make_builder(settings.data), d.split, settings, images=("face",))
    vectors = data.collected(embed, examples, config.evaluate.batch_size, mesh, "distractors")
    who = [(e["subject"], e["face_view"]) for e in (examples[i] for i in range(len(examples)))]
    # In the run's own records, validation people may be the queries.
    own = data.records_name(settings.data) == data.records_name(config.data)
    queries = set(_subjects(config)) if own else set()
    kept = [place for place, (subject, _) in enumerate(who) if subject not in queries]
    # Cohorts may use the same names.
    named = [f"distractor {who[place][0]}" for place in kept]
    views = [who[place][1] for place in kept]
    return {name: r.Faces(found[kept], named, views) for name, found in vectors.items()}


def _subjects(config: ml_collections.ConfigDict) -> list[str]:
    """Returns the names of the people who are scored."""
    examples = read_examples(config, data.make_builder(config.data), images=())
    return sorted({example["subject"] for example in examples})


def protocols(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """Returns `(view, gallery)` of each protocol. Raises InputError if one is unknown."""
    found = []
    for name in config.evaluate.retrieval.protocols:
        view, _, gallery = name.partition("/")
        if view not in r.VIEWS or gallery not in GALLERIES:
            raise InputError(
                f"evaluate.retrieval.protocols names {name!r}; expected {' or '.join(r.VIEWS)}, a"
                f" slash, {' or '.join(GALLERIES)}"
            )
        found.append((view, gallery))
    return found


def check_protocols(config: ml_collections.ConfigDict, who: Sequence[dict[str, str]]) -> None:
    """Raises InputError if the examples are too few for `evaluate.retrieval`.

    `retrieval` would raise it later.
    """
    names = sorted({w["subject"] for w in who})
    perfect = np.eye(len(names))[[names.index(w["subject"]) for w in who]]
    once = config.copy_and_resolve_references()
    once.evaluate.bootstrap = 1
    retrieval(once, who, perfect, {"": perfect}, None, "")


def chance(same: Bool[Array, "q g"], allowed: Bool[Array, "q g"], k: int) -> float:
    """Returns the expected recall@k of a list in random order."""
    sizes = zip(allowed.sum(1).tolist(), (same & allowed).sum(1).tolist(), strict=True)
    return float(np.mean([1.0 - comb(n - own, k) / comb(n, k) for n, own in sizes]))


def retrieval(
    config: ml_collections.ConfigDict,
    who: Sequence[dict[str, str]],
    truth: Float[Array, "n d"],
    kinds: dict[str, Float[Array, "n _"]],
    others: r.Faces | None,
    headline: str,
) -> dict[str, Retrieval]:
    """Returns the results of each protocol, by its name.

    Queries are the faces of each kind, and the true faces themselves for the ceiling: these can't
    find a picture of their own age and BMI. The gallery is the true faces, and perhaps distractors.

    Args:
      config: of the run; `evaluate.retrieval`, `evaluate.bootstrap` and `seed` count.
      who: `subject`, `view` and `variant` of each example.
      truth: vectors of the true faces.
      kinds: vectors of the other rows.
      others: distractors.
      headline: the row that is compared with shuffled X-rays, if these are a row.
    """
    people = _People(
        subjects=[w["subject"] for w in who],
        views=[w["view"] for w in who],
        variants=np.array([f"{w['subject']} {w['variant']}" for w in who]),
    )
    return {
        f"{view}/{size}": _of_protocol(
            config, people, truth, kinds, others, headline, view=view, size=size
        )
        for view, size in protocols(config)
    }


class _People(NamedTuple):
    """Subject, view and variant (age and BMI) of each face."""

    subjects: list[str]
    views: list[str]
    variants: np.ndarray


def _gallery(
    people: _People,
    truth: Float[Array, "n d"],
    others: r.Faces | None,
    seed: int,
    *,
    view: str,
    size: str,
) -> tuple[r.Faces, np.ndarray]:
    """Returns the gallery of a protocol, and the variant of each face in it."""
    gallery, variants = r.Faces(truth, people.subjects, people.views), people.variants
    if size == "one":
        rows = r.one_image(gallery, view, seed)
        gallery, variants = gallery.take(rows), variants[rows]
    if others is None:
        return gallery, variants
    extra = others.take(r.one_image(others, view, seed)) if size == "one" else others
    joined = r.Faces(
        np.concatenate([gallery.vectors, extra.vectors]),
        [*gallery.subjects, *extra.subjects],
        [*gallery.views, *extra.views],
    )
    return joined, np.append(variants, extra.subjects)


def _of_protocol(
    config: ml_collections.ConfigDict,
    people: _People,
    truth: Float[Array, "n d"],
    kinds: dict[str, Float[Array, "n _"]],
    others: r.Faces | None,
    headline: str,
    *,
    view: str,
    size: str,
) -> Retrieval:
    """Returns the results of one protocol; see `retrieval`."""
    c = config.evaluate
    subjects = people.subjects

    def interval(values: Float[Array, "q"], names: Sequence[str]) -> Estimate:
        return mean_interval(values, names, c.bootstrap, config.seed)

    gallery, pictured = _gallery(people, truth, others, config.seed, view=view, size=size)
    true_faces = r.Faces(truth, subjects, people.views)
    by_subject: dict[str, dict[str, list[float]]] = {}
    result = Retrieval(
        gallery=len(gallery.subjects),
        seen=int(r.similarities(true_faces, gallery, view)[2].sum(1).min()),
        rows={},
        curves={},
        by_subject=by_subject,
    )
    values_at_k: dict[str, dict[str, Float[Array, q]]] = {}
    for name, vectors in (kinds | {CEILING: truth}).items():
        # Queries, and the faces that they may find.
        queries = r.Faces(vectors, subjects, people.views)
        cosines, same, allowed = r.similarities(queries, gallery, view)
        asked = np.arange(len(subjects))
        if name == CEILING:
            allowed &= people.variants[:, None] != pictured[None]
            asked = np.flatnonzero((same & allowed).any(1))
            if not len(asked):
                continue  # one picture of each: there is no other to find
        cosines, same, allowed = cosines[asked], same[asked], allowed[asked]
        names = [subjects[i] for i in asked]

        # Metrics at each rank, and of the cosines themselves.
        hits = r.ranked(cosines, same, allowed)
        values_at_k[name] = r.at_k(hits, allowed, c.retrieval.ks)
        result.rows[name] = {
            metric: interval(values, names) for metric, values in values_at_k[name].items()
        }
        separation = r.separation(cosines, same, allowed)
        result.rows[name] |= {metric: Estimate(mean=value) for metric, value in separation.items()}
        smallest = int(allowed.sum(1).min())
        result.curves[name] = r.match_curve(hits)[:smallest].round(4).tolist()
        if name != CEILING:
            by_subject[name] = {
                metric: subject_means(values, names).tolist()
                for metric, values in values_at_k[name].items()
            }
            result.chance = {f"recall@{k}": chance(same, allowed, k) for k in c.retrieval.ks}

    # The headline against the same faces made from other people's X-rays.
    if SHUFFLED in values_at_k:
        result.against = {}
        for metric, values in values_at_k[headline].items():
            control = values_at_k[SHUFFLED][metric]
            p = permutation_test(values, control, subjects, c.bootstrap, config.seed)
            gain = interval(values - control, subjects)
            result.against[metric] = msgspec.structs.replace(gain, p=p)
    return result
