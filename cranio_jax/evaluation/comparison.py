"""Results of several methods and seeds as one: means over seeds, intervals over subjects, differences paired by subject."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cranio_jax.errors import InputError
from cranio_jax.evaluation.controls import MEAN_FACE, SHUFFLED
from cranio_jax.evaluation.retrieval import CEILING
from cranio_jax.metrics.resampling import bootstrap
from cranio_jax.reporting.tables import describe

Results = dict[str, Any]
# Must be the same for all: results of other pictures, galleries or judges are no comparison.
_ALIKE = ("data", "images", "subjects", "resizing")


def compare(
    runs: Mapping[str, Sequence[Results]],
    headline: str,
    baselines: Sequence[str],
    rounds: int,
    seed: int = 0,
) -> Results:
    """One table of all methods, in the form that `tables` writes.

    A method's value of a subject is its mean over seeds; the interval resamples subjects. What is of whole sets (FID, d')
    is a mean over seeds with its standard deviation.

    Args:
      runs: the results of each method's seeds.
      headline: the method that is held against the others; without results of it there are no differences.
      baselines: those that it is held against.
      rounds: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      InputError: results of different data, subjects or judges.
    """
    first_name, first = next((name, results[0]) for name, results in runs.items() if results)
    for name, results in runs.items():
        for one in results:
            _check_alike(first_name, first, name, one)
    subjects = first["by_subject"]["subjects"]
    interval = lambda values: dict(
        zip(
            ("mean", "low", "high"),
            bootstrap(np.asarray(values), subjects, rounds, seed),
            strict=True,
        )
    )

    made = {name: results for name, results in runs.items() if results and results[0]["rows"]}
    values, sets = {}, {}
    for name, results in made.items():
        values[name], sets[name] = _merged(results, _own_row(results[0]))
    for row in (SHUFFLED, MEAN_FACE):
        if headline in made:
            title = f"{headline}, {row}" if row == SHUFFLED else row
            values[title], sets[title] = _merged(made[headline], row)
    rows = {
        name: {metric: interval(v) for metric, v in each.items()} | sets[name]
        for name, each in values.items()
    }

    found = {
        embedder: _retrieval(runs, embedder, headline, interval)
        for embedder in first_embedders(made)
    }
    told = {name: first[name] for name in _ALIKE}
    told |= {
        "networks": _union(runs, "networks"),
        "not_computed": first["not_computed"],
        "headline": headline,
        "against": "the baselines",
    }
    compared = [name for name in baselines if name in made] if headline in made else []
    differences, best = _differences(values, headline, compared, interval)
    told |= {
        "rows": rows,
        "differences": differences,
        "best": best,
        "retrieval": {name: part for name, part in found.items() if part},
    }
    for protocols in told["retrieval"].values():
        for part in protocols.values():
            part["differences"], part["best"] = _differences(
                part.pop("values"), headline, compared, interval
            )
    return told


def first_embedders(made: Mapping[str, Sequence[Results]]) -> list[str]:
    """The judges of identity, in the order in which results name them."""
    return list(
        dict.fromkeys(
            name for results in made.values() for one in results for name in one["retrieval"]
        )
    )


def _own_row(results: Results) -> str:
    return next(iter(results["rows"]))


def _check_alike(name: str, first: Results, other_name: str, other: Results) -> None:
    wrong = next((field for field in _ALIKE if first[field] != other[field]), None)
    if wrong is None and first["by_subject"]["subjects"] != other["by_subject"]["subjects"]:
        wrong = "subjects"
    if wrong is None and other["rows"] and first["rows"] and first["networks"] != other["networks"]:
        wrong = "networks"
    if wrong:
        raise InputError(
            f"{name} and {other_name} were scored on different {wrong}; they can't stand in one table"
        )


def _union(runs: Mapping[str, Sequence[Results]], field: str) -> dict[str, Any]:
    return {
        name: value
        for results in runs.values()
        for one in results
        for name, value in one[field].items()
    }


def _merged(
    results: Sequence[Results], row: str
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Of a row: by metric the mean over seeds of each subject's value, and what is of whole sets."""
    by_subject = [one["by_subject"]["rows"][row] for one in results]
    values = {metric: np.mean([each[metric] for each in by_subject], 0) for metric in by_subject[0]}
    return values, _over_seeds([one["rows"][row] for one in results], values)


def _over_seeds(
    rows: Sequence[dict[str, dict[str, float]]], known: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Of metrics that have no value of each subject, the mean over seeds, and where there are several their deviation."""
    found = {}
    for metric in rows[0]:
        if metric not in known:
            each = [row[metric]["mean"] for row in rows]
            found[metric] = {"mean": float(np.mean(each))} | (
                {"sd": float(np.std(each, ddof=1))} if len(each) > 1 else {}
            )
    return found


def _retrieval(
    runs: Mapping[str, Sequence[Results]], embedder: str, headline: str, interval
) -> dict[str, Any]:
    """Each protocol's rows: methods by the judge `embedder`; matchers, which judge themselves, beside them."""
    protocols: dict[str, Any] = {}
    for name, results in runs.items():
        if not results:
            continue
        own = embedder if embedder in results[0]["retrieval"] else name
        for protocol, first in results[0]["retrieval"].get(own, {}).items():
            told = {field: first[field] for field in ("gallery", "seen", "chance")}
            part = protocols.setdefault(protocol, told | {"rows": {}, "values": {}, "curves": {}})
            parts = [one["retrieval"][own][protocol] for one in results]
            row = _own_row(results[0]) if results[0]["rows"] else name
            rows = {name: row} | ({f"{name}, {SHUFFLED}": SHUFFLED} if name == headline else {})
            for title, row in rows.items():
                each = [one["by_subject"][row] for one in parts]
                part["values"][title] = {
                    metric: np.mean([e[metric] for e in each], 0) for metric in each[0]
                }
                part["rows"][title] = {
                    metric: interval(v) for metric, v in part["values"][title].items()
                }
                part["rows"][title] |= _over_seeds(
                    [one["rows"][row] for one in parts], part["values"][title]
                )
                curves = [one["curves"][row] for one in parts]
                part["curves"][title] = (
                    np.mean([c[: min(map(len, curves))] for c in curves], 0).round(4).tolist()
                )
            if name == headline and CEILING in first["rows"]:
                part["rows"][CEILING], part["curves"][CEILING] = (
                    first["rows"][CEILING],
                    first["curves"][CEILING],
                )
    return protocols


def _differences(
    values: Mapping[str, Mapping[str, np.ndarray]],
    headline: str,
    baselines: Sequence[str],
    interval,
):
    """The headline minus each baseline, and minus whichever is best by each metric; and which one that is."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    present = [name for name in baselines if name in values]
    for name in present:
        found[f"{headline} minus {name}"] = {
            metric: interval(own - values[name][metric]) for metric, own in values[headline].items()
        }
    best = {}
    if len(present) > 1:
        for metric in values[headline]:
            better = max if describe(metric)[1] else min
            best[metric] = better(
                present, key=lambda name, metric=metric: float(np.mean(values[name][metric]))
            )
        gain = {
            metric: interval(own - values[best[metric]][metric])
            for metric, own in values[headline].items()
        }
        found[f"{headline} minus the best baseline"] = gain
    return found, best
