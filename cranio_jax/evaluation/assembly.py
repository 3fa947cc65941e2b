"""From scores to results: intervals, differences to the controls, and retrieval."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from cranio_jax.distributed import sharding
from cranio_jax.evaluation.examples import PHOTOGRAPH, SYNTHETIC, count_synthetic
from cranio_jax.evaluation.results import BySubject, Records, Results
from cranio_jax.evaluation.retrieval import distractor_faces, retrieval
from cranio_jax.evaluation.scorer import Scores
from cranio_jax.methods import Batch
from cranio_jax.metrics.estimates import Estimate, mean_interval
from cranio_jax.metrics.features import Features
from cranio_jax.metrics.registry import PairMetric, SetMetric, of_kind
from cranio_jax.metrics.resampling import subject_means
from cranio_jax.metrics.sets import SetOptions
from cranio_jax.runs.provenance import provenance

RESIZING = (
    "pictures are compared at their own size; the Inception scales them as TensorFlow 1 did"
    " (bilinear, corners alike, no smoothing)"
)


def origin_of(method: Any, step: int, builder: Any, records: str) -> dict[str, Any]:
    """Returns the origin of a checkpoint's scores; `records` is the fingerprint of the data."""
    return {
        "step": step,
        "parameters": method.parameter_count(),
        "weights_sha256": method.weight_hashes(),
        "data": Records(name=builder.info.full_name, sha256=records),
    }


def assemble(
    config: ml_collections.ConfigDict,
    features: Features,
    mesh: jax.sharding.Mesh,
    who: Sequence[dict[str, str]],
    truth: Scores,
    scored: dict[str, Scores],
    headline: str,
    *,
    controls: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    **origin: Any,
) -> Results:
    """Returns numbers with their intervals.

    Args:
      config: of the run.
      features: the networks.
      mesh: to embed distractors on.
      who: `subject`, `view`, `variant` and `kind` of each example.
      truth: scores of the true faces.
      scored: scores by kind of faces.
      headline: the kind that is compared with the `controls`.
      controls: other kinds.
      size: height and width of the pictures; None if no metric of pictures is wanted.
      **origin: further fields of `Results`.
    """
    c = config.evaluate
    subjects = [w["subject"] for w in who]

    def interval(values: np.ndarray) -> Estimate:
        return mean_interval(values, subjects, c.bootstrap, config.seed)

    # Metrics of pairs and of sets, and the headline's differences to the controls.
    rows = {
        name: (
            {metric: interval(values) for metric, values in scores.pairs.items()}
            | set_metrics(config, truth, scores)
        )
        for name, scores in scored.items()
    }
    if 0 < count_synthetic(who) < len(who) and scored:
        rows |= _apart(who, scored[headline], headline, config)
    differences = {
        f"{headline} minus {control}": {
            metric: interval(values - scored[control].pairs[metric])
            for metric, values in scored[headline].pairs.items()
        }
        for control in controls
    }
    values_of_subjects = {
        name: {
            metric: subject_means(values, subjects).tolist()
            for metric, values in scores.pairs.items()
        }
        for name, scores in scored.items()
    }

    # Retrieval with each embedder.
    found = {}
    if features.embedders:
        others = distractor_faces(config, embedding(features, mesh), mesh)
        for name in features.embedders:
            kinds = {row: scores.rows[name] for row, scores in scored.items()}
            found[name] = retrieval(
                config, who, truth.rows[name], kinds, others.get(name), headline
            )

    not_computed = features.missing(SetMetric, PairMetric) if scored else {}
    return Results(
        rows=rows,
        differences=differences,
        by_subject=BySubject(subjects=sorted(set(subjects)), rows=values_of_subjects),
        retrieval=found,
        images=len(who),
        subjects=len(set(subjects)),
        synthetic=count_synthetic(who),
        networks=features.sha256,
        not_computed=not_computed | (features.too_small(*size) if size else {}),
        resizing=RESIZING,
        **provenance(config),
        **origin,
    )


def _apart(
    who: Sequence[dict[str, str]], scores: Scores, headline: str, config: ml_collections.ConfigDict
) -> dict[str, dict[str, Estimate]]:
    """Returns the headline's rows against photographs alone and against synthetic faces alone."""
    rows = {}
    for kind in (PHOTOGRAPH, SYNTHETIC):
        here = np.array([w["kind"] == kind for w in who])
        subjects = [w["subject"] for w in who if w["kind"] == kind]
        rows[f"{headline}, {kind}s alone"] = {
            metric: mean_interval(values[here], subjects, config.evaluate.bootstrap, config.seed)
            for metric, values in scores.pairs.items()
        }
    return rows


def set_metrics(
    config: ml_collections.ConfigDict, truth: Scores, scores: Scores
) -> dict[str, Estimate]:
    """Returns the metrics that compare all faces with all true ones, by their keys in results."""
    c = config.evaluate
    options = SetOptions(c.kernel_subset, c.kernel_rounds, config.seed)
    found = {}
    for network, theirs in truth.sets.items():
        for metric in of_kind(SetMetric):
            key = metric.key_of(network)
            value = metric.compute(scores.sets[network], theirs, options) if key else None
            if key and value:
                found[key] = value
    return found


def embedding(
    features: Features, mesh: jax.sharding.Mesh
) -> Callable[[Batch], dict[str, jax.Array]]:
    """Returns the jitted function from a batch to vectors of its faces, by embedder."""
    params = features.load(mesh)

    def embed(params: Any, batch: Batch) -> dict[str, jax.Array]:
        return features.embed(params, batch["face"])

    jitted = jax.jit(embed, out_shardings=sharding.replicated(mesh))
    return lambda batch: jitted(params, batch)
