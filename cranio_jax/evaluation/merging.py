"""Means over a method's seeds of what only generators have: groups, reliability, millimetres."""

from collections.abc import Mapping, Sequence

import numpy as np

from cranio_jax.errors import InputError
from cranio_jax.evaluation.results import (
    BySubject,
    Depths,
    Group,
    Groups,
    Reliability,
    Results,
)
from cranio_jax.metrics.estimates import Estimate, mean_interval


def reliability(seeds: Sequence[Mapping[str, Reliability]]) -> dict[str, Reliability]:
    """Returns means over seeds; with several, the ratio's interval is their standard deviation."""
    merged = {}
    for name, first in seeds[0].items():
        each = [one[name] for one in seeds if name in one]
        if len(each) < len(seeds):
            continue
        ratios = [one.ratio.mean for one in each]
        ratio = first.ratio
        if len(each) > 1:
            ratio = Estimate(mean=float(np.mean(ratios)), sd=float(np.std(ratios, ddof=1)))
        merged[name] = Reliability(
            points=[tuple(p) for p in np.mean([one.points for one in each], 0).tolist()],
            ratio=ratio,
            correlation=float(np.mean([one.correlation for one in each])),
            spread=float(np.mean([one.spread for one in each])),
        )
    return merged


def groups(seeds: Sequence[Groups], rounds: int, seed: int) -> Groups:
    """Returns the groups that all seeds have, with means of each subject over seeds."""
    merged: Groups = {}
    for attribute, groups in seeds[0].items():
        for name, first in groups.items():
            each = [one.get(attribute, {}).get(name) for one in seeds]
            found = [group for group in each if group]
            if len(found) < len(seeds):
                continue
            values = {
                metric: np.mean([group.values[metric] for group in found], 0)
                for metric in first.values
            }
            merged.setdefault(attribute, {})[name] = Group(
                subjects=first.subjects,
                images=first.images,
                metrics={
                    metric: mean_interval(v, first.subjects, rounds, seed)
                    for metric, v in values.items()
                },
                values={metric: v.tolist() for metric, v in values.items()},
            )
    return merged


def depths(
    methods: Mapping[str, Sequence[Results]], headline: str, rounds: int, seed: int
) -> Depths | None:
    """Returns errors in millimetres: a row for each method, then the rivals of practice.

    Methods of which a seed was not scored on cephalograms are left out; None if all are.
    Differences are the headline's minus each other row's.

    Raises:
      InputError: methods were scored on different people, or with and without soft tissue.
    """
    scored = {
        name: [one.depths for one in results if one.depths]
        for name, results in methods.items()
        if results and all(one.depths for one in results)
    }
    if not scored:
        return None
    first_name, (first, *_) = next(iter(scored.items()))
    for name, seeds in scored.items():
        for one in seeds:
            if (one.by_subject.subjects, one.masked) != (first.by_subject.subjects, first.masked):
                raise InputError(
                    f"{first_name} and {name} were scored on different cephalograms; they can't "
                    "share a table"
                )

    # Each person's errors: a method's own row is the first, and names of its rivals are common.
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, seeds in scored.items():
        row = next(iter(seeds[0].by_subject.rows))
        parts = [one.by_subject.rows[row] for one in seeds]
        values[name] = {site: np.mean([part[site] for part in parts], 0) for site in parts[0]}
    for rival in (key.rpartition(" minus ")[2] for key in first.differences):
        sites = first.by_subject.rows[rival]
        values[rival] = {site: np.asarray(errors) for site, errors in sites.items()}

    def estimates(errors: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
        people = first.by_subject.subjects
        return {site: mean_interval(v, people, rounds, seed) for site, v in errors.items()}

    differences = {}
    if headline in values:
        for name in (name for name in values if name != headline):
            of_sites = {site: v - values[name][site] for site, v in values[headline].items()}
            differences[f"{headline} minus {name}"] = estimates(of_sites)
    return Depths(
        rows={name: estimates(errors) for name, errors in values.items()},
        differences=differences,
        images=first.images,
        subjects=first.subjects,
        masked=first.masked,
        unknown=first.unknown,
        by_subject=BySubject(
            subjects=first.by_subject.subjects,
            rows={
                name: {site: v.tolist() for site, v in errors.items()}
                for name, errors in values.items()
            },
        ),
    )
