"""The metric step: faces of several kinds beside the true ones, measured by one jitted program that adds up on the mesh."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jaxtyping import Float, Int
from numpy import ndarray as Array

from cranio_jax.data import device_batches
from cranio_jax.distributed import cluster, sharding
from cranio_jax.evaluation.generation import check_finite
from cranio_jax.methods import Batch
from cranio_jax.metrics.distributions import InceptionScore, Moments, Rows
from cranio_jax.metrics.features import Features
from cranio_jax.metrics.sets import INCEPTION, FeatureSet

# Metrics by name. It is a clu.metrics.Collection but for the names, which need not be identifiers.
Kinds = dict[str, type[clu_metrics.Metric]]
Totals = dict[str, clu_metrics.Metric]


def empty(kinds: Kinds) -> Totals:
    """Of no example."""
    return {name: kind.empty() for name, kind in kinds.items()}


def of_batch(kinds: Kinds, **outputs: Any) -> Totals:
    """Of a batch."""
    return {name: kind.from_model_output(**outputs) for name, kind in kinds.items()}


def merge(a: Totals, b: Totals) -> Totals:
    """Of both."""
    return {name: metric.merge(b[name]) for name, metric in a.items()}


class Scores(NamedTuple):
    """What was measured of one kind of faces, on the host.

    Attributes:
      pairs: each pair's value, `(count,)`, by metric; none for the true faces themselves.
      rows: `(count, width)` features and vectors of identity, by network.
      sets: what metrics of sets are computed from, by network.
    """

    pairs: dict[str, Float[Array, "n"]]
    rows: dict[str, Float[Array, "n d"]]
    sets: dict[str, FeatureSet]


class Scorer:
    """Measures kinds of faces, each of the same examples, against the true ones.

    What the networks make of a true face is computed once for all kinds.
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
        generate: Callable[[Any, Batch], tuple[jax.Array, jax.Array]] | None = None,
    ):
        """Prepares the step.

        Args:
          features: the networks.
          mesh: where batches lie.
          kinds: their names: first those that are generated in the step, then those that an example holds.
          size: height and width of all faces.
          count: of the examples.
          splits: of the Inception score.
          masked: whether examples hold a `head_mask`.
          generate: from what `run` is given and a batch to `(kinds, batch, height, width, 3)` uint8 faces, and to whether
            each is made of numbers, `(kinds, batch)`.

        Raises:
          InputError: faces too small for one of the networks.
        """
        features.check_size(*size)
        self._names, self._features, self._mesh, self._count = tuple(kinds), features, mesh, count
        self._params = features.load(mesh)
        picture = jax.ShapeDtypeStruct((1, *size, 3), np.uint8)
        widths = features.distributions | {
            n: v.shape[1] for n, v in jax.eval_shape(features.embed, self._params, picture).items()
        }
        self._rows, self._pairs = tuple(widths), tuple(features.pair_metrics(*size, masked))
        # A network's rows and the metric that comes of them may have one name.
        rows = lambda found: (
            {f"rows of {name}": found[name] for name in self._rows}
            | {"logits": found.get("logits")}
        )
        alone: Kinds = {
            f"rows of {name}": Rows.of(f"rows of {name}", count, width)
            for name, width in widths.items()
        }
        alone |= {
            f"moments of {name}": Moments.of(f"rows of {name}", width)
            for name, width in features.distributions.items()
        }
        alone |= (
            {"inception score": InceptionScore.of("logits", splits, 1008)}
            if features.has_inception
            else {}
        )
        paired = alone | {name: Rows.of(name, count) for name in self._pairs}

        def step(params, given, batch, totals):
            faces, finite = [], jnp.ones((), bool)
            if generate:
                made, finite = generate(given, batch)
                faces.append(made)
            if "generated" in batch:
                faces.append(jnp.moveaxis(batch["generated"], 1, 0))
            place = {name: batch[name] for name in ("place", "split", "mask")}
            truth = features.describe(params, batch["face"])

            def measure(faces):
                found = features.describe(params, faces)
                pairs = features.compare(
                    params, found, truth, faces, batch["face"], batch.get("head_mask")
                )
                return of_batch(paired, **rows(found), **pairs, **place)

            totals = {
                "truth": merge(totals["truth"], of_batch(alone, **rows(truth), **place)),
                "kinds": jax.vmap(merge)(
                    totals["kinds"], jax.lax.map(measure, jnp.concatenate(faces))
                ),
            }
            return totals, finite

        def start():
            each = jax.tree.map(lambda a: jnp.stack([a] * len(self._names)), empty(paired))
            return {"truth": empty(alone), "kinds": each}

        everywhere = sharding.replicated(mesh)
        self._step = jax.jit(step, out_shardings=everywhere, donate_argnums=3)
        self._start = jax.jit(start, out_shardings=everywhere)
        # Drawn at random: neighbours in the list are one person's pictures.
        self._split = (np.random.default_rng(0).permutation(count) * splits // count).astype(
            np.int32
        )

    def run(
        self,
        examples: Sequence[dict[str, Any]],
        batch_size: int,
        say: str | None,
        given: Any = None,
    ) -> tuple[Scores, dict[str, Scores]]:
        """The true faces' scores, and each kind's.

        Args:
          examples: with a true `face`, and `generated`, `(kinds, height, width, 3)`, where not all are generated here.
          batch_size: of the step.
          say: what the progress line calls it; None for no line.
          given: for `generate`.

        Raises:
          InputError: a face that is not made of numbers, or too few examples for a covariance or a split.
        """
        totals, before = self._start(), None
        for places, batch in device_batches(
            Placed(examples, self._split), batch_size, self._mesh, say
        ):
            if not places.start:
                self._step = cluster.compiled(self._step, self._params, given, batch, totals)
            totals, finite = self._step(self._params, given, batch, totals)
            jax.block_until_ready(
                before
            )  # one batch ahead and no more: memory is bounded, and progress is true
            before = finite
            if (
                given is not None
                and not (whole := np.atleast_2d(jax.device_get(finite)).all(0)).all()
            ):
                check_finite(whole, [examples[i]["id"] for i in places])
        totals = jax.device_get(totals)
        kinds = {
            name: jax.tree.map(lambda a, i=i: a[i], totals["kinds"])
            for i, name in enumerate(self._names)
        }
        return self._scores(totals["truth"], ()), {
            name: self._scores(part, self._pairs) for name, part in kinds.items()
        }

    def _scores(self, totals: Totals, pairs: Sequence[str]) -> Scores:
        rows = {name: totals[f"rows of {name}"].compute() for name in self._rows}
        sets = {}
        for name in self._features.distributions:
            score = totals.get("inception score") if name == INCEPTION else None
            moments = totals[f"moments of {name}"].compute()
            sets[name] = FeatureSet(rows[name], *moments, score.compute() if score else None)
        return Scores({name: totals[name].compute() for name in pairs}, rows, sets)


class Placed(Sequence):
    """Examples that know their place in the list, and their split."""

    def __init__(self, examples: Sequence[dict[str, Any]], split: Int[Array, "n"]):
        self._examples, self._split = examples, split

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._examples[index] | {"place": np.int32(index), "split": self._split[index]}
