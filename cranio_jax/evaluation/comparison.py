"""Comparison of methods: means over seeds, intervals over subjects, paired differences."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cranio_jax.errors import InputError
from cranio_jax.evaluation import merging
from cranio_jax.evaluation.controls import MEAN_FACE, SHUFFLED
from cranio_jax.evaluation.disturbances import PREFIX as DISTURBED
from cranio_jax.evaluation.results import (
    Comparison,
    Metrics,
    Results,
    Retrieval,
    Rows,
)
from cranio_jax.evaluation.retrieval import CEILING
from cranio_jax.metrics.estimates import Estimate, mean_interval
from cranio_jax.metrics.registry import metric_of

# These must be equal: results on different pictures, galleries or judges can't be compared.
_ALIKE = ("data", "images", "subjects", "synthetic", "radiograph", "split", "resizing")

# Values of each subject, by metric.
Values = dict[str, Float[np.ndarray, "s"]]
Interval = Callable[[Float[np.ndarray, "s"]], Estimate]


def compare(
    runs: Mapping[str, Sequence[Results]],
    headline: str,
    baselines: Sequence[str],
    rounds: int,
    seed: int = 0,
    other_xrays: Sequence[str] = (),
) -> Comparison:
    """Returns one table of all methods.

    A method's value of a subject is its mean over seeds; the interval resamples subjects. A metric
    of whole sets (FID, d') is a mean over seeds with its standard deviation.

    Args:
      runs: the results of each method's seeds.
      headline: the method that is compared with the others; without results of it there are no
        differences.
      baselines: the methods that it is compared with.
      rounds: of the bootstrap.
      seed: of the bootstrap.
      other_xrays: the methods that were given other X-rays of the same people, such as dry skulls.
        Their records may be others, of the same settings.

    Raises:
      InputError: results of different data, subjects or judges.
    """
    first_name, first = next(
        (name, results[0]) for name, results in runs.items() if results and name not in other_xrays
    )
    for name, results in runs.items():
        for one in results:
            _check_alike(first_name, first, name, one, same_xrays=name not in other_xrays)
    subjects = first.by_subject.subjects

    def interval(values: Float[np.ndarray, "s"]) -> Estimate:
        return mean_interval(values, subjects, rounds, seed)

    # Rows: each method that generates faces, and the headline's controls.
    generators = {name: results for name, results in runs.items() if results and results[0].rows}
    values: dict[str, Values] = {}
    rows: Rows = {}
    row_names = {name: (name, _first_row(results[0])) for name, results in generators.items()}
    if headline in generators:
        controls = _controls([one.rows for one in generators[headline]])
        row_names |= {f"{headline}, {row}": (headline, row) for row in controls}
        row_names[MEAN_FACE] = (headline, MEAN_FACE)
    for title, (name, row) in row_names.items():
        values[title], of_sets = _merged(generators[name], row)
        rows[title] = {metric: interval(v) for metric, v in values[title].items()} | of_sets

    # Differences, of pictures and of each protocol.
    compared = [name for name in baselines if name in generators] if headline in generators else []
    differences, best = _differences(values, headline, compared, interval)
    retrieval = {}
    for embedder in _embedders(generators):
        protocols = _retrieval(runs, embedder, headline, compared, interval)
        if protocols:
            retrieval[embedder] = protocols

    # What each method has of its own.
    groups = {}
    reliability = {}
    for name, results in generators.items():
        row = _first_row(results[0])
        of_groups = [one.groups.get(row, {}) for one in results]
        of_reliability = [one.reliability.get(row, {}) for one in results]
        if merged_groups := merging.groups(of_groups, rounds, seed):
            groups[name] = merged_groups
        if merged_reliability := merging.reliability(of_reliability):
            reliability[name] = merged_reliability
    networks = {
        name: digest
        for results in runs.values()
        for one in results
        for name, digest in one.networks.items()
    }
    return Comparison(
        data=first.data,
        images=first.images,
        subjects=first.subjects,
        synthetic=first.synthetic,
        radiograph=first.radiograph,
        split=first.split,
        resizing=first.resizing,
        networks=networks,
        not_computed=first.not_computed,
        headline=headline,
        against="the baselines",
        rows=rows,
        differences=differences,
        best=best,
        retrieval=retrieval,
        groups=groups,
        reliability=reliability,
        depths=merging.depths(generators, headline, rounds, seed),
        other_xrays={
            name: results[0].data.name
            for name, results in runs.items()
            if results and results[0].data and name in other_xrays
        },
    )


def _embedders(runs: Mapping[str, Sequence[Results]]) -> list[str]:
    """Returns the embedders that judge identity, in the order in which results name them."""
    names = (name for results in runs.values() for one in results for name in one.retrieval)
    return list(dict.fromkeys(names))


def _controls(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the rows of shuffled and of bad X-rays that all seeds have; each holds its rows."""
    rows = (row for row in seeds[0] if row == SHUFFLED or row.startswith(DISTURBED))
    return [row for row in rows if all(row in one for one in seeds)]


def _first_row(results: Results) -> str:
    return next(iter(results.rows))


def _settings(results: Results) -> Any:
    """Returns the settings of the records: size, pairing and seed."""
    return results.config.get("data", {}).get("settings")


def _check_alike(
    name: str, first: Results, other_name: str, other: Results, same_xrays: bool
) -> None:
    fields = [field for field in _ALIKE if same_xrays or field != "data"]
    wrong = next((field for field in fields if getattr(first, field) != getattr(other, field)), "")
    if not wrong and _settings(first) != _settings(other):
        wrong = "data.settings"
    if not wrong and first.by_subject.subjects != other.by_subject.subjects:
        wrong = "subjects"
    if not wrong and other.rows and first.rows and first.networks != other.networks:
        wrong = "networks"
    if wrong:
        raise InputError(
            f"{name} and {other_name} were scored on different {wrong}; they can't share a table"
        )


def _merged(results: Sequence[Results], row: str) -> tuple[Values, Metrics]:
    """Returns a row's values of subjects, as means over seeds, and its metrics of whole sets."""
    by_subject = [one.by_subject.rows[row] for one in results]
    values = {metric: np.mean([each[metric] for each in by_subject], 0) for metric in by_subject[0]}
    return values, _over_seeds([one.rows[row] for one in results], values)


def _over_seeds(rows: Sequence[Metrics], known: Values) -> Metrics:
    """Returns the mean over seeds of metrics without values per subject.

    With several seeds they have the standard deviation too.
    """
    estimates = {}
    for metric in rows[0]:
        if metric not in known:
            each = [row[metric].mean for row in rows]
            sd = float(np.std(each, ddof=1)) if len(each) > 1 else None
            estimates[metric] = Estimate(mean=float(np.mean(each)), sd=sd)
    return estimates


def _retrieval(
    runs: Mapping[str, Sequence[Results]],
    embedder: str,
    headline: str,
    compared: Sequence[str],
    interval: Interval,
) -> dict[str, Retrieval]:
    """Returns each protocol's rows, by the judge `embedder`.

    Matchers, which judge themselves, are added.
    """
    protocols: dict[str, Retrieval] = {}
    values: dict[str, dict[str, Values]] = {}
    for name, results in runs.items():
        if not results:
            continue
        judge = embedder if embedder in results[0].retrieval else name
        for protocol, first in results[0].retrieval.get(judge, {}).items():
            merged = protocols.setdefault(
                protocol,
                Retrieval(
                    gallery=first.gallery, seen=first.seen, chance=first.chance, rows={}, curves={}
                ),
            )
            of_protocol = values.setdefault(protocol, {})
            parts = [one.retrieval[judge][protocol] for one in results]
            row_names = {name: _first_row(results[0]) if results[0].rows else name}
            if name == headline:
                controls = _controls([one.rows for one in parts])
                row_names |= {f"{name}, {row}": row for row in controls}
            for title, row in row_names.items():
                each = [(one.by_subject or {})[row] for one in parts]
                of_protocol[title] = {
                    metric: np.mean([e[metric] for e in each], 0) for metric in each[0]
                }
                merged.rows[title] = {
                    metric: interval(v) for metric, v in of_protocol[title].items()
                } | _over_seeds([one.rows[row] for one in parts], of_protocol[title])
                curves = [one.curves[row] for one in parts]
                shortest = min(map(len, curves))
                merged.curves[title] = np.mean([c[:shortest] for c in curves], 0).round(4).tolist()
            if name == headline and CEILING in first.rows:
                merged.rows[CEILING] = first.rows[CEILING]
                merged.curves[CEILING] = first.curves[CEILING]
    for protocol, merged in protocols.items():
        merged.differences, merged.best = _differences(
            values[protocol], headline, compared, interval
        )
    return protocols


def _differences(
    values: Mapping[str, Values], headline: str, baselines: Sequence[str], interval: Interval
) -> tuple[Rows, dict[str, str]]:
    """Returns the headline minus each baseline and minus the best one, and which one that is.

    Its faces from bad X-rays are subtracted too, but are no baselines.
    """
    differences: Rows = {}
    present = [name for name in baselines if name in values]
    of_bad_xrays = [name for name in values if name.startswith(f"{headline}, {DISTURBED}")]
    for name in (*present, *of_bad_xrays):
        differences[f"{headline} minus {name}"] = {
            metric: interval(v - values[name][metric]) for metric, v in values[headline].items()
        }
    if len(present) < 2:
        return differences, {}

    best = {}
    for metric in values[headline]:
        means = {name: float(np.mean(values[name][metric])) for name in present}
        choose = max if metric_of(metric).higher_is_better else min
        best[metric] = choose(present, key=means.__getitem__)
    differences[f"{headline} minus the best baseline"] = {
        metric: interval(v - values[best[metric]][metric]) for metric, v in values[headline].items()
    }
    return differences, best
