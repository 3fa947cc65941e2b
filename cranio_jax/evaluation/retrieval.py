"""Is it the same person? Retrieval of generated faces among real ones, with a ceiling, controls and their uncertainty."""

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import jax
import ml_collections
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from cranio_jax import data
from cranio_jax.errors import InputError
from cranio_jax.evaluation.controls import SHUFFLED
from cranio_jax.methods import Batch
from cranio_jax.metrics import retrieval as r
from cranio_jax.metrics.resampling import bootstrap, permutation_test, subject_means

CEILING = "another real face of the subject"
GALLERIES = ("all", "one")


def distractor_faces(
    config: ml_collections.ConfigDict,
    embed: Callable[[Batch], dict[str, jax.Array]],
    mesh: jax.sharding.Mesh,
) -> dict[str, r.Faces]:
    """Faces of people that nobody asks for, from the records of `evaluate.retrieval.distractors`; perhaps none.

    `embed` is jitted, and makes vectors of a batch's faces, by embedder.
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
    subjects, views = zip(*who, strict=True)
    # Cohorts may call their people alike.
    named = [f"distractor {subject}" for subject in subjects]
    return {name: r.Faces(found, named, list(views)) for name, found in vectors.items()}


def protocols(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """`(view, gallery)` of each protocol. Raises InputError where one is none."""
    found = []
    for name in config.evaluate.retrieval.protocols:
        view, _, gallery = name.partition("/")
        if view not in r.VIEWS or gallery not in GALLERIES:
            raise InputError(
                f"evaluate.retrieval.protocols names {name!r}; expected {' or '.join(r.VIEWS)}, a slash, {' or '.join(GALLERIES)}"
            )
        found.append((view, gallery))
    return found


def check_protocols(config: ml_collections.ConfigDict, who: Sequence[dict[str, str]]) -> None:
    """Raises InputError where `evaluate.retrieval` asks of the examples what these can't give: what `retrieval` would say later."""
    names = sorted({w["subject"] for w in who})
    perfect = np.eye(len(names))[[names.index(w["subject"]) for w in who]]
    once = config.copy_and_resolve_references()
    once.evaluate.bootstrap = 1
    retrieval(once, who, perfect, {"": perfect}, None, "")


def chance(same: Float[Array, "q g"], allowed: Float[Array, "q g"], k: int) -> float:
    """The expected recall@k of a list in random order."""
    sizes = zip(allowed.sum(1).tolist(), (same & allowed).sum(1).tolist(), strict=True)
    return float(np.mean([1.0 - comb(n - own, k) / comb(n, k) for n, own in sizes]))


def retrieval(
    config: ml_collections.ConfigDict,
    who: Sequence[dict[str, str]],
    truth: Float[Array, "n d"],
    kinds: dict[str, Float[Array, "n d"]],
    others: r.Faces | None,
    headline: str,
) -> dict[str, Any]:
    """What each protocol finds, by its name.

    Queries are the faces of each kind, and the true faces themselves for the ceiling: these may not find a picture of
    their own age and BMI. The gallery is the true faces, and perhaps distractors.

    Args:
      config: of the run; `evaluate.retrieval`, `evaluate.bootstrap` and `seed` count.
      who: `subject`, `view` and `variant` of each example.
      truth: vectors of the true faces.
      kinds: vectors of the other rows.
      others: distractors.
      headline: the row that is held against shuffled X-rays, where these are a row.
    """
    c, found = config.evaluate, {}
    subjects, views = ([w[name] for w in who] for name in ("subject", "view"))
    variants = np.array([f"{w['subject']} {w['variant']}" for w in who])
    interval = lambda values, own: dict(
        zip(("mean", "low", "high"), bootstrap(values, own, c.bootstrap, config.seed), strict=True)
    )
    for view, size in protocols(config):
        gallery, pictured = r.Faces(truth, subjects, views), variants
        if size == "one":
            rows = r.one_image(gallery, view, config.seed)
            gallery, pictured = gallery.take(rows), variants[rows]
        if others is not None:
            extra = others.take(r.one_image(others, view, config.seed)) if size == "one" else others
            gallery = r.Faces(*(np.concatenate(both) for both in zip(gallery, extra, strict=True)))
            pictured = np.append(pictured, extra.subjects)
        found[f"{view}/{size}"] = part = {
            "gallery": len(gallery.subjects),
            "rows": {},
            "curves": {},
        }
        part["by_subject"] = {}
        part["seen"] = int(
            r.similarities(r.Faces(truth, subjects, views), gallery, view)[2].sum(1).min()
        )
        each = {}
        for name, vectors in (kinds | {CEILING: truth}).items():
            cosines, same, allowed = r.similarities(
                r.Faces(vectors, subjects, views), gallery, view
            )
            asked = np.arange(len(subjects))
            if name == CEILING:
                allowed &= variants[:, None] != pictured[None]
                asked = np.flatnonzero((same & allowed).any(1))
                if not len(asked):
                    continue  # one picture of each: there is no other to be found
            cosines, same, allowed = cosines[asked], same[asked], allowed[asked]
            hits, own = r.ranked(cosines, same, allowed), [subjects[i] for i in asked]
            each[name] = r.at_k(hits, allowed, c.retrieval.ks)
            part["rows"][name] = {
                metric: interval(values, own) for metric, values in each[name].items()
            } | {
                metric: {"mean": value}
                for metric, value in r.separation(cosines, same, allowed).items()
            }
            part["curves"][name] = (
                r.match_curve(hits)[: int(allowed.sum(1).min())].round(4).tolist()
            )
            if name != CEILING:
                part["by_subject"][name] = {
                    metric: subject_means(values, own).tolist()
                    for metric, values in each[name].items()
                }
                part["chance"] = {f"recall@{k}": chance(same, allowed, k) for k in c.retrieval.ks}
        if SHUFFLED in each:
            part["against"] = {}
            for metric, values in each[headline].items():
                gain = values - each[SHUFFLED][metric]
                p = permutation_test(
                    values, each[SHUFFLED][metric], subjects, c.bootstrap, config.seed
                )
                part["against"][metric] = interval(gain, subjects) | {"p": p}
    return found
