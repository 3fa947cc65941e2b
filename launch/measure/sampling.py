"""Measures what each setting of the sampler does to the faces, on validation people.

python launch/sampling.py --config=CONFIG --workdir=DIR --figure=FILE.png

Noise level, guidance, steps and the number of samples that are averaged are varied, one at a time,
about the configuration's own. Identity, LPIPS and spread are measured on validation people, so that
test people have no say. A table is printed. The figure has a column for each setting and a row for
each measure.

Faces are kept in the workdir, so a second call makes only those that are new.
"""

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import app, flags

from cranio_jax.errors import InputError
from cranio_jax.evaluation.evaluate import score
from cranio_jax.evaluation.reliability import PIXELS
from cranio_jax.evaluation.results import Results
from cranio_jax.files import buckets
from cranio_jax.methods import method_class
from cranio_jax.metrics.estimates import Estimate

SAMPLES = "samples averaged"
# Values of each setting. Spread needs two samples or more.
GRID: dict[str, tuple[float, ...]] = {
    "temperature": (0.1, 0.2, 0.5, 0.8, 1.0),
    "guidance_scale": (1.0, 1.5, 3.0, 5.0, 7.5),
    "num_steps": (5, 10, 20, 50),
    SAMPLES: (1, 2, 4, 8),
}
_DRAWN = 4  # samples of each face where their number is not varied
MEASURES = ("identity", "LPIPS", "spread", "error / expected error")
# Metrics of identity and LPIPS, by the beginning of their keys; the first that is found counts.
_KEYS = {"identity": ("identity/", "arcface/"), "LPIPS": ("lpips/",)}


class Point(NamedTuple):
    """What one value of one setting gives.

    Attributes:
      setting, value: what was varied.
      measures: by name; without those that were not measured.
    """

    setting: str
    value: float
    measures: dict[str, Estimate]


def settings_of(config: ml_collections.ConfigDict) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Yields each setting, its value, and the sampler's fields: all but one the configuration's."""
    chosen = {name: config.sampling[name] for name in GRID if name != SAMPLES}
    for name, values in GRID.items():
        if name == SAMPLES:
            yield from ((name, value, chosen) for value in values)
            continue
        for value in sorted({*values, chosen[name]}):
            yield name, value, chosen | {name: type(chosen[name])(value)}


def measures_of(results: Results, averaged: bool) -> dict[str, Estimate]:
    """Returns the measures of one sample, or of the mean of all samples."""
    rows = list(results.rows.values())
    row = rows[1] if averaged else rows[0]
    measures = {}
    for name, starts in _KEYS.items():
        keys = [key for start in starts for key in row if key.startswith(start)]
        if keys:
            measures[name] = row[keys[0]]
    for reliability in results.reliability.values():
        measures["spread"] = Estimate(mean=reliability[PIXELS].spread)
        measures["error / expected error"] = reliability[PIXELS].ratio
    return measures


def measure(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[Point]:
    """Returns a point for each value of each setting. Raises InputError if that can't be done."""
    if not ("sampling" in config and method_class(config).writes_pipeline):
        raise InputError(
            f"{config.method.name} takes no steps. Name the configuration of a diffusion model."
        )
    config = config.copy_and_resolve_references()
    config.evaluate.update(split="validation", keep_faces=True, pictures=0, disturbances=())
    config.data.cephalograms.manifest = ""
    if not config.data.validation_subjects:
        raise InputError(
            "data.validation_subjects=0: settings are chosen on validation people. Train with some."
        )
    known: dict[str, Results] = {}
    points = []
    for name, value, fields in settings_of(config):
        averaged = name == SAMPLES and value > 1
        config.sampling.update(fields)
        config.evaluate.num_samples = max(int(value), 2) if name == SAMPLES else _DRAWN
        key = repr((fields, config.evaluate.num_samples))
        if key not in known:
            known[key] = score(config, workdir)
        points.append(Point(name, value, measures_of(known[key], averaged)))
    return points


def text(points: Sequence[Point]) -> str:
    """Returns the points as a table in Markdown."""
    lines = [f"| setting | {' | '.join(MEASURES)} |", "| --- " * (1 + len(MEASURES)) + "|"]
    for point in points:
        cells = [_cell(point.measures.get(name)) for name in MEASURES]
        lines.append(f"| {point.setting} {point.value:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if estimate.low is None:
        return f"{estimate.mean:.3f}"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def figure(points: Sequence[Point], chosen: dict[str, float], path: pathlib.Path) -> None:
    """Writes a chart: a column for each setting, a row for each measure.

    `chosen` has the configuration's values, which are marked.
    """
    from matplotlib.figure import Figure

    names = [name for name in MEASURES if any(name in point.measures for point in points)]
    page = Figure(figsize=(2.6 * len(GRID), 1.9 * len(names)), layout="constrained")
    plots = page.subplots(len(names), len(GRID), sharey="row", sharex="col", squeeze=False)
    # A line with its interval in each.
    for row, name in zip(plots, names, strict=True):
        row[0].set_ylabel(name)
        for plot, setting in zip(row, GRID, strict=True):
            here = [p for p in points if p.setting == setting and name in p.measures]
            x = [p.value for p in here]
            estimates = [p.measures[name] for p in here]
            plot.plot(x, [e.mean for e in estimates], "o-", color="#1f6fb2", lw=1.3, ms=3)
            if all(e.low is not None for e in estimates):
                bounds = ([e.low for e in estimates], [e.high for e in estimates])
                plot.fill_between(x, *bounds, color="#1f6fb2", alpha=0.15, lw=0)
            if setting in chosen:
                plot.axvline(chosen[setting], color="#d98a00", lw=1, ls="--")
            plot.grid(color="#e6eaee")
            plot.spines[["top", "right"]].set_visible(False)
    for plot, setting in zip(plots[-1], GRID, strict=True):
        plot.set_xlabel(setting.replace("_", " "))
    page.savefig(path, dpi=110)


def main() -> None:
    """Prints the table of the configuration and workdir that the flags name."""
    # Only here: the import defines the program's flags.
    from cranio_jax import main as program

    chart = flags.DEFINE_string("figure", None, "Picture of the table.")

    def run(_: list[str]) -> None:
        config = program._CONFIG.value
        if not program._WORKDIR.value:
            raise app.UsageError("--workdir: name the folder of a run that is trained.")
        points = measure(config, buckets.open_folder(program._WORKDIR.value, "--workdir"))
        print(text(points))
        if chart.value:
            chosen = {name: config.sampling[name] for name in GRID if name != SAMPLES}
            figure(points, chosen, pathlib.Path(chart.value))

    sys.path.append(str(program.CHECKOUT))
    app.run(run, flags_parser=program.parse)
