"""The metric step: generated faces and the true ones, measured by one jitted program."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jaxtyping import Float, Int
from numpy import ndarray as Array

from cranio_jax.data import ExampleSource, device_batches
from cranio_jax.distributed import cluster, sharding
from cranio_jax.evaluation.generation import check_finite
from cranio_jax.methods import Batch
from cranio_jax.metrics.accumulators import ByPlace, InceptionScore, Moments
from cranio_jax.metrics.features import Features
from cranio_jax.metrics.sets import INCEPTION, FeatureSet

# Metrics by name. clu.metrics.Collection does the same, but its names must be identifiers.
Kinds = dict[str, type[clu_metrics.Metric]]
Totals = dict[str, clu_metrics.Metric]
# `(given, batch)` to faces `(kinds, b, h, w, 3)` uint8, and whether each is finite, `(kinds, b)`.
Generate = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]


def empty(kinds: Kinds) -> Totals:
    """Returns accumulators that hold no example."""
    return {name: kind.empty() for name, kind in kinds.items()}


def of_batch(kinds: Kinds, **outputs: Any) -> Totals:
    """Accumulates one batch."""
    return {name: kind.from_model_output(**outputs) for name, kind in kinds.items()}


def merge(a: Totals, b: Totals) -> Totals:
    """Merges two accumulators of the same metrics."""
    return {name: metric.merge(b[name]) for name, metric in a.items()}


class Scores(NamedTuple):
    """The measurements of one kind of faces, on the host.

    Attributes:
      pairs: each pair's value, `(count,)`, by metric; empty for the true faces themselves.
      rows: `(count, width)` features and vectors of identity, by network.
      sets: the inputs of set metrics, by network.
    """

    pairs: dict[str, Float[Array, "n"]]
    rows: dict[str, Float[Array, "n _"]]
    sets: dict[str, FeatureSet]


class Scorer:
    """Measures kinds of faces, each of the same examples, against the true ones.

    Features of a true face are computed once for all kinds.
    """

    def __init__(
        self,
        features: Features,
        mesh: jax.sharding.Mesh,
        kinds: Sequence[str],
        size: tuple[int, int],
        count: int,
        splits: int,
        masked: bool = False,
        generate: Generate | None = None,
    ):
        """Prepares the step.

        Args:
          features: the networks.
          mesh: where batches lie.
          kinds: their names: first those that `generate` makes, then those that an example holds.
          size: height and width of all faces.
          count: of the examples.
          splits: of the Inception score.
          masked: whether examples hold a `head_mask`.
          generate: makes faces in the step; None if examples hold all.

        Raises:
          InputError: faces too small for one of the networks.
        """
        features.check_size(*size)
        self._names = tuple(kinds)
        self._features = features
        self._mesh = mesh
        self._params = features.load(mesh)
        self._pairs = tuple(features.pair_metrics(*size, masked))

        # Accumulators of the true faces, and of pairs.
        picture = jax.ShapeDtypeStruct((1, *size, 3), np.uint8)
        vectors = jax.eval_shape(features.embed, self._params, picture)
        widths = features.distributions | {name: v.shape[1] for name, v in vectors.items()}
        self._networks = tuple(widths)
        alone = self._accumulators(widths, count, splits)
        paired = alone | {name: ByPlace.of(name, count) for name in self._pairs}

        def start() -> dict[str, Totals]:
            each = jax.tree.map(lambda a: jnp.stack([a] * len(self._names)), empty(paired))
            return {"truth": empty(alone), "kinds": each}

        everywhere = sharding.replicated(mesh)
        step = _make_step(features, self._networks, alone, paired, generate)
        self._step: Callable[..., Any] = jax.jit(step, out_shardings=everywhere, donate_argnums=3)
        self._start = jax.jit(start, out_shardings=everywhere)
        # Splits are drawn at random, since neighbours in the list are one person's pictures.
        order = np.random.default_rng(0).permutation(count)
        self._split = (order * splits // count).astype(np.int32)

    def _accumulators(self, widths: dict[str, int], count: int, splits: int) -> Kinds:
        """Returns the accumulators of features by network."""
        # A Frechet distance of few pictures is computed from their features, of many from moments.
        # A network's rows and the metric that is computed from them may have one name.
        rows = {
            f"rows of {name}": ByPlace.of(f"rows of {name}", count, width)
            for name, width in widths.items()
        }
        moments = {
            f"moments of {name}": Moments.of(f"rows of {name}", width)
            for name, width in self._features.distributions.items()
        }
        if not self._features.has_inception:
            return rows | moments
        return rows | moments | {"inception score": InceptionScore.of("logits", splits, 1008)}

    def run(
        self,
        examples: ExampleSource,
        batch_size: int,
        title: str | None,
        given: Any = None,
    ) -> tuple[Scores, dict[str, Scores]]:
        """Returns the true faces' scores, and each kind's.

        Args:
          examples: each with a true `face`, and with `generated`, `(kinds, height, width, 3)`, if
            not all kinds are generated here.
          batch_size: of the step.
          title: of the progress line; None for no line.
          given: the first argument of `generate`.

        Raises:
          InputError: a face that is not finite, or too few examples for a covariance or a split.
        """
        totals = self._start()
        before = None
        placed = Placed(examples, self._split)
        for places, batch in device_batches(placed, batch_size, self._mesh, title):
            if not places.start:
                self._step = cluster.compiled(self._step, self._params, given, batch, totals)
            totals, finite = self._step(self._params, given, batch, totals)
            # One batch ahead and no more: memory is bounded, and the progress line is accurate.
            jax.block_until_ready(before)
            before = finite
            if given is not None:
                is_whole = np.asarray(np.atleast_2d(jax.device_get(finite)).all(0))
                if not is_whole.all():
                    check_finite(is_whole, [examples[i]["id"] for i in places])
        totals = jax.device_get(totals)
        scores = {}
        for i, name in enumerate(self._names):
            of_kind = jax.tree.map(lambda a, i=i: a[i], totals["kinds"])
            scores[name] = self._scores(of_kind, self._pairs)
        return self._scores(totals["truth"], ()), scores

    def _scores(self, totals: Totals, pairs: Sequence[str]) -> Scores:
        rows = {name: totals[f"rows of {name}"].compute() for name in self._networks}
        sets = {}
        for name in self._features.distributions:
            score = totals.get("inception score") if name == INCEPTION else None
            mean, covariance = totals[f"moments of {name}"].compute()
            inception_score = score.compute() if score else None
            sets[name] = FeatureSet(rows[name], mean, covariance, inception_score)
        return Scores({name: totals[name].compute() for name in pairs}, rows, sets)


def _make_step(
    features: Features,
    networks: Sequence[str],
    alone: Kinds,
    paired: Kinds,
    generate: Generate | None,
):
    """Returns `(params, given, batch, totals) -> (totals, finite)`; see `Scorer`.

    Args:
      features: the networks.
      networks: the names of those whose rows are kept.
      alone: accumulators of the true faces.
      paired: accumulators of each kind of faces.
      generate: makes faces; None if a batch holds all.
    """

    def outputs_of(described: dict[str, Any]) -> dict[str, Any]:
        rows = {f"rows of {name}": described[name] for name in networks}
        return rows | {"logits": described.get("logits")}

    def step(params, given, batch, totals):
        # Collect the faces of all kinds.
        faces = []
        finite = jnp.ones((), bool)
        if generate:
            fresh, finite = generate(given, batch)
            faces.append(fresh)
        if "generated" in batch:
            faces.append(jnp.moveaxis(batch["generated"], 1, 0))

        # Describe the true faces once, and compare each kind with them.
        place = {name: batch[name] for name in ("place", "split", "mask")}
        truth = features.describe(params, batch["face"])

        def measure(faces):
            described = features.describe(params, faces)
            pairs = features.compare(
                params, described, truth, faces, batch["face"], batch.get("head_mask")
            )
            return of_batch(paired, **outputs_of(described), **pairs, **place)

        each = jax.lax.map(measure, jnp.concatenate(faces))
        totals = {
            "truth": merge(totals["truth"], of_batch(alone, **outputs_of(truth), **place)),
            "kinds": jax.vmap(merge)(totals["kinds"], each),
        }
        return totals, finite

    return step


class Placed:
    """Examples with their index in the list, and their split of the Inception score."""

    def __init__(self, examples: ExampleSource, split: Int[Array, "n"]):
        self._examples = examples
        self._split = split

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._examples[index] | {"place": np.int32(index), "split": self._split[index]}
