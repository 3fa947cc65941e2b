"""The metrics: each is one registered object, from which tables, pages and checks follow."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax

from cranio_jax.errors import InputError
from cranio_jax.metrics.estimates import Estimate


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weight files that some metrics need, and the metrics' common name."""

    metrics: str
    files: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric's name, and how it is shown.

    Attributes:
      name: its key in results. A key may continue: after a slash with its input (a
        network, a part of the picture), and after an "@" with a rank.
      title: in tables.
      higher_is_better: the direction.
      digits: after the point.
      scale: factor of the value in tables; the title says so.
      weights: what it needs; None if nothing.
      main: whether readers look for it first: pages show its course in training, and tables
        say so if pictures are too small for it.
    """

    name: str
    title: str
    higher_is_better: bool
    digits: int
    scale: float = 1.0
    weights: Weights | None = None
    main: bool = False

    def key(self, part: str) -> str:
        """Returns the key in results for `part`, which is empty for the whole picture."""
        return f"{self.name}/{part}" if part else self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairMetric(Metric):
    """A metric of a generated face and the true one; its mean is over subjects.

    Attributes:
      parts: from `metrics.features.Features`, and whether head masks are known, to what the metric
        can be computed from: "" for whole pictures, "head", or names of networks.
      compute: from `metrics.pairs.Pairs` and one of `parts` to a value for each pair, `(b,)`.
      least_side: the least height and width of the pictures, in pixels.
    """

    parts: Callable[[Any, bool], Iterable[str]]
    compute: Callable[[Any, str], jax.Array]
    least_side: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetMetric(Metric):
    """A metric of all generated faces and all true ones, in the features of a network.

    Attributes:
      key_of: from a network to the key in results; None if it does not use that network.
      compute: from `metrics.sets.FeatureSet` of the generated and of the true faces, and
        `metrics.sets.SetOptions`, to the value; None if it is undefined.
    """

    key_of: Callable[[str], str | None]
    compute: Callable[[Any, Any, Any], Estimate | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankMetric(Metric):
    """A metric of the first k places of each query's ranking; its key in results ends with k.

    Attributes:
      compute: from which places of the rankings hold the query's own subject, `(q, g)`, and k, to
        a value for each query, `(q,)`.
    """

    compute: Callable[[Any, int], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeparationMetric(Metric):
    """A metric of how well cosines separate a subject's own faces from others'.

    Attributes:
      compute: from the cosines of a subject's own faces and those of others', each in ascending
        order, to the value.
    """

    compute: Callable[[Any, Any], float]


METRICS: dict[str, Metric] = {}
_Kind = TypeVar("_Kind", bound=Metric)


def register(metric: _Kind) -> _Kind:
    """Adds a metric; tables show metrics in the order in which they were registered."""
    if metric.name in METRICS:
        raise ValueError(f"two metrics are called {metric.name!r}")
    METRICS[metric.name] = metric
    return metric


def of_kind(kind: type[_Kind]) -> list[_Kind]:
    """Returns the registered metrics of a class."""
    return [metric for metric in METRICS.values() if isinstance(metric, kind)]


def metric_of(key: str) -> Metric:
    """Returns the metric that a key in results belongs to. Raises InputError if there is none."""
    name = key.partition("/")[0]
    rank = name.find("@") + 1
    metric = METRICS.get(name[:rank] or name)
    if metric is None:
        raise InputError(
            f"the results hold {name!r}, which is not a registered metric. Import the module that "
            "registers it, or evaluate again."
        )
    return metric


def title_of(key: str) -> str:
    """Returns the title of a key in results, with its input."""
    metric = metric_of(key)
    rest = key.removeprefix(metric.name)
    return metric.title + (f", {rest[1:]}" if rest.startswith("/") else rest)


def place_of(key: str) -> int:
    """Returns the place of a key's metric among the columns of a table."""
    return list(METRICS).index(metric_of(key).name)
