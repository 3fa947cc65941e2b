"""The schema of results.json and study.json: the only place that reads and writes their format."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from cranio_jax.errors import InputError
from cranio_jax.files.atomic import write_json
from cranio_jax.metrics.estimates import Estimate

# The row of the head that an outline network finds in the X-ray, measured as a face is.
OUTLINE = "outline alone"
# Groups of fewer people have no interval that one could trust.
LEAST_PEOPLE = 5

# Estimates by metric, and those by row of a table.
Metrics = dict[str, Estimate]
Rows = dict[str, Metrics]


class BySubject(msgspec.Struct):
    """Each subject's values, for paired comparisons of runs.

    Attributes:
      subjects: their names, sorted.
      rows: by row and metric, a value for each of `subjects`.
    """

    subjects: list[str]
    rows: dict[str, dict[str, list[float]]]


class Retrieval(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Results of one retrieval protocol with one embedder.

    Attributes:
      gallery: how many real faces it holds.
      seen: the minimum number of them that a query is compared with.
      rows: metrics by kind of query.
      curves: cumulative match curves: at k - 1, the share of queries whose subject is among the
        first k faces.
      by_subject: by row and metric, a value for each subject.
      chance: the expected metrics of a list in random order.
      against: the headline minus shuffled X-rays, if these are a row.
      differences: in a comparison, the headline minus each baseline.
      best: in a comparison, the best baseline by metric.
    """

    gallery: int
    seen: int
    rows: Rows
    curves: dict[str, list[float]]
    by_subject: dict[str, dict[str, list[float]]] | None = None
    chance: dict[str, float] | None = None
    against: Metrics | None = None
    differences: Rows | None = None
    best: dict[str, str] | None = None


class Depths(msgspec.Struct, kw_only=True):
    """Errors of the depth of soft tissue on real people, in mm.

    Attributes:
      rows: mean absolute errors by site, of a method and its rivals.
      differences: the method's minus each rival's, paired by subject.
      images: how many X-rays there are.
      subjects: of how many people.
      masked: whether soft tissue is hidden in the X-rays.
      unknown: of how many X-rays sex or age is not known.
      by_subject: each person's errors.
    """

    rows: Rows
    differences: Rows
    images: int
    subjects: int
    masked: bool
    unknown: int
    by_subject: BySubject


class Group(msgspec.Struct):
    """The scores of a part of the test faces.

    Attributes:
      subjects: whose faces they are, sorted.
      images: how many there are.
      metrics: with intervals of resampling subjects.
      values: by metric, a value for each of `subjects`.
    """

    subjects: list[str]
    images: int
    metrics: Metrics
    values: dict[str, list[float]]


# Groups by attribute and name.
Groups = dict[str, dict[str, Group]]


class Reliability(msgspec.Struct):
    """Whether samples are more alike where they are nearer to the truth.

    Attributes:
      points: expected and true error of each tenth of the pixels or faces, from where samples agree
        to where they do not; roots of mean squares.
      ratio: of the true error to the expected one: 1 for an honest model, more for one that is
        too sure.
      correlation: of expected and true errors, by rank.
      spread: the standard deviation of samples, of 1 for pixels.
    """

    points: list[tuple[float, float]]
    ratio: Estimate
    correlation: float
    spread: float


class Records(msgspec.Struct):
    """Which records were used: their name, and the SHA-256 of their content."""

    name: str
    sha256: str


class Scored(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The data of tables and pages, for a run or a comparison.

    Attributes:
      rows: metrics by kind of faces.
      differences: the headline minus controls or baselines, paired by subject.
      retrieval: by embedder and protocol.
      images: how many generated pictures were scored.
      subjects: how many people they show, if that is known.
      synthetic: with how many of them a face was compared that is itself synthetic.
      radiograph: how varied the X-rays were made, from 0 to 1.
      split: whose faces were scored: 'test' or 'validation'.
      reference_images: how many real pictures they were compared with, as sets.
      unpaired: why pictures were compared as sets; empty if in pairs.
      networks: SHA-256 by feature network.
      depths: errors in mm, if cephalograms were scored.
      groups: by method, the scores of groups of faces.
      reliability: by method, and by what is sampled: pixels, or identity by an embedder.
      not_computed: what each missing metric needs.
      resizing: how pictures were scaled for the networks.
      data: the records.
      against: what the headline is compared with.
      best: in a comparison, the best baseline by metric.
      costs: in a comparison, what training and sampling took, by method.
    """

    rows: Rows
    differences: Rows
    retrieval: dict[str, dict[str, Retrieval]]
    images: int
    subjects: int | None = None
    synthetic: int = 0
    radiograph: float = 0.0
    split: str = "test"
    reference_images: int | None = None
    unpaired: str = ""
    depths: Depths | None = None
    networks: dict[str, str]
    groups: dict[str, Groups] = {}
    reliability: dict[str, dict[str, Reliability]] = {}
    not_computed: dict[str, str]
    resizing: str
    data: Records | None = None
    against: str = "the controls"
    best: dict[str, str] | None = None
    costs: dict[str, dict[str, float]] | None = None


class Results(Scored, omit_defaults=True, kw_only=True):
    """The results of one run: results.json.

    Attributes:
      by_subject: each subject's values.
      config: without paths.
      seed: of the run.
      versions: of libraries.
      devices: their count and kind.
      commit: of the checkout.
      step: of the checkpoint, if one was scored.
      parameters: how many, by network.
      weights_sha256: of published weights, by network.
      seconds_per_face: of sampling, if it was timed.
    """

    by_subject: BySubject
    config: dict[str, Any]
    seed: int
    versions: dict[str, str]
    devices: str
    commit: str
    step: int | None = None
    parameters: dict[str, int] | None = None
    weights_sha256: dict[str, str] | None = None
    seconds_per_face: float | None = None


class Comparison(Scored, omit_defaults=True, kw_only=True):
    """The results of several methods and seeds: study.json.

    Attributes:
      headline: the method that is compared with the baselines.
      seeds: of the finished runs, by method.
      study: its name.
      other_xrays: the data of methods that were given other X-rays of the same people.
    """

    headline: str
    seeds: dict[str, list[int]] = {}
    study: str = ""
    other_xrays: dict[str, str] = {}


def to_json(results: Scored) -> dict[str, Any]:
    """Returns results as JSON values."""
    return msgspec.to_builtins(results)


def write(path: pathlib.Path, results: Scored) -> None:
    """Writes results, whole or not at all."""
    write_json(path, to_json(results))


_Kind = TypeVar("_Kind", bound=Scored)


def _read(path: pathlib.Path, kind: type[_Kind]) -> _Kind:
    try:
        return from_json(json.loads(path.read_text()), kind)
    except ValueError as error:
        raise InputError(f"{path.name}: not a results file ({error}). Score again.") from None


def from_json(content: Mapping[str, Any], kind: type[_Kind]) -> _Kind:
    """Returns results from JSON. Raises ValueError if it holds none."""
    return msgspec.convert(content, kind)


def read_results(path: pathlib.Path) -> Results:
    """Reads results.json of this version or an earlier one. Raises InputError if it holds none."""
    return _read(path, Results)


def read_comparison(path: pathlib.Path) -> Comparison:
    """Reads study.json of this version or an earlier one. Raises InputError if it holds none."""
    return _read(path, Comparison)
