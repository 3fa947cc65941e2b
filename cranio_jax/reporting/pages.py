"""The pages of a run and of a study: tables, X-ray | truth | faces, curves."""

import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from cranio_jax.errors import InputError
from cranio_jax.evaluation import results as schema
from cranio_jax.evaluation.depths import PICTURE
from cranio_jax.evaluation.results import Comparison
from cranio_jax.files.atomic import whole_file
from cranio_jax.files.pictures import read_face
from cranio_jax.metrics.registry import METRICS
from cranio_jax.reporting import charts, tables
from cranio_jax.reporting.document import data_uri, document
from cranio_jax.reporting.notice import NOTICE
from cranio_jax.runs.log import logged

# Fields of the results that show a run's origin.
_ORIGIN = (
    *("seed", "step", "data", "networks", "weights_sha256", "versions", "devices", "commit"),
    "parameters",
)


class Gallery(NamedTuple):
    """Test pictures of a run, from pictures.npz.

    Attributes:
      captions: a line for each example.
      xray: `(n, h, w, 1)` uint8.
      truth: `(n, h, w, 3)` uint8.
      faces: by row of the table, `(n, h, w, 3)` uint8.
    """

    captions: Sequence[str]
    xray: np.ndarray
    truth: np.ndarray
    faces: dict[str, np.ndarray]


def read_gallery(path: pathlib.Path) -> Gallery | None:
    """Reads pictures.npz; None if there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
        faces = {str(row): content["faces"][:, i] for i, row in enumerate(content["rows"])}
        captions = [str(caption) for caption in content["captions"]]
        return Gallery(captions, content["xray"], content["face"], faces)


def report(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Writes report.html from results, log, pictures and reconstructions in `workdir`.

    Raises InputError if there are no results.
    """
    del config
    path = workdir / "results.json"
    if not path.exists():
        raise InputError(f"{workdir} holds no results.json; run job=evaluate first")
    results = schema.read_results(path)

    # What was scored.
    subtitle = f"{results.images} pictures of {results.subjects or 0} people"
    if results.unpaired:
        subtitle = f"Pictures: {tables.counted(results)}"
    if results.step is not None and results.parameters is not None:
        millions = sum(results.parameters.values()) / 1e6
        subtitle += f", step {results.step}, {millions:.1f} M parameters"

    # How it was trained, and from what.
    losses = _points(workdir).get("loss", [])
    chart = charts.lines({"loss": losses}, "Loss on training batches", log=True)
    training = f"<h2>Training</h2><div class=curves>{chart}</div>" if losses else ""
    content = schema.to_json(results)
    origin = json.dumps({name: content[name] for name in _ORIGIN if name in content}, indent=2)
    config_text = json.dumps(results.config, indent=2)

    gallery = read_gallery(workdir / "pictures.npz")
    pictures = ""
    if gallery:
        columns = {"X-ray": gallery.xray, "truth": gallery.truth} | gallery.faces
        people = f"<h2>{results.split.capitalize()} people</h2>"
        pictures = people + _side_by_side(columns, gallery.captions)
    body = f"""<p class=small>{subtitle}</p>
<p class=notice>{NOTICE}</p>
{tables.web(results, "pictures")}
{_cephalograms(workdir / PICTURE) if results.depths else ""}
<p class=small>The mean face is the training mean of the same view, age and BMI change; shuffled
X-rays give each person somebody else's X-ray of the same view and sex. A mean of several samples
is not itself a sample, and is not compared with single samples.</p>
{pictures}
{tables.web(results, "retrieval")}
{tables.web(results, "groups")}
{tables.web(results, "reliability", more=charts.reliability(results.reliability))}
{charts.all_match_curves(results.retrieval)}
{_reconstructions(workdir / "reconstructions")}
{training}
<h2>Where this comes from</h2>
<pre>{html.escape(origin)}</pre>
<details><summary>Configuration</summary><pre>{html.escape(config_text)}</pre></details>"""
    name = results.config["name"]
    return _write(workdir / "report.html", document(name, f"Faces from skull X-rays: {name}", body))


def study(
    results: Comparison, folders: Mapping[str, Sequence[pathlib.Path]], workdir: pathlib.Path
) -> pathlib.Path:
    """Writes study.html: tables, the same people by each method, and each method's curves.

    Args:
      results: of all methods.
      folders: of the runs, by method, a folder for each seed.
      workdir: where to write.
    """
    columns: dict[str, np.ndarray] = {}
    captions: Sequence[str] = ()
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, (first, *_) in folders.items():
        gallery = read_gallery(first / "pictures.npz")
        if gallery:
            if not columns:
                columns = {"X-ray": gallery.xray, "truth": gallery.truth}
                captions = gallery.captions
            if name in results.other_xrays:
                columns[f"{name}: X-ray"] = gallery.xray
            columns[name] = next(iter(gallery.faces.values()))
        for key, points in _points(first).items():
            if _is_main(key):
                curves.setdefault(key, {})[name] = points
    training = "".join(
        charts.lines(series, key, log=key == "loss") for key, series in curves.items()
    )
    seeds = ", ".join(f"{name} {len(seeds)}" for name, seeds in results.seeds.items())
    people = f"{results.images} pictures of {results.subjects} people; seeds: {html.escape(seeds)}"
    body = f"""<p class=small>{people}</p>
<p class=notice>{NOTICE}</p>
{tables.web_table(tables.overview(results))}
<h2>The same people by each method</h2>{_side_by_side(columns, captions)}
<h2>More</h2>
{tables.web(results, "pictures", whole=False)}
{tables.web(results, "retrieval", whole=False, more=charts.all_match_curves(results.retrieval))}
{tables.web(results, "groups")}
{tables.web(results, "reliability", more=charts.reliability(results.reliability))}
<details><summary>During training: methods' losses are not comparable</summary>
<div class=curves>{training}</div></details>"""
    heading = f"Faces from skull X-rays: {results.study}"
    return _write(workdir / "study.html", document(results.study, heading, body))


def _write(path: pathlib.Path, page: str) -> pathlib.Path:
    with whole_file(path) as file:
        file.write(page)
    return path


def _side_by_side(columns: Mapping[str, np.ndarray], captions: Sequence[str]) -> str:
    """Returns rows of pictures, a column for each kind, each row under its caption."""
    # Pictures stay large: more than six are wrapped.
    grid = f"grid-template-columns:repeat({min(len(columns), 6)},minmax(6rem,1fr))"
    parts = []
    for i, caption in enumerate(captions):
        figures = ""
        for name, pictures in columns.items():
            picture = data_uri(pictures[i], max(1, 192 // pictures.shape[1]))
            label = html.escape(name)
            figures += f'<figure><img src="{picture}" alt="{label}">'
            figures += f"<figcaption>{label}</figcaption></figure>"
        parts.append(f"<div class=small>{html.escape(caption)}</div>")
        parts.append(f'<div class=faces style="{grid}">{figures}</div>')
    return "".join(parts)


def _cephalograms(path: pathlib.Path) -> str:
    """Returns the picture of cephalograms and their faces, if there is one."""
    if not path.exists():
        return ""
    source = data_uri(read_face(path))
    words = (
        "X-rays of real people, faces made of them, both overlaid, and landmarks of the X-ray on "
        "bone (white) and skin (red)"
    )
    return (
        f'<figure class=sheets><img class=sheet src="{source}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _reconstructions(folder: pathlib.Path) -> str:
    parts = []
    for path in sorted(folder.glob("*/record.json")):
        record = json.loads(path.read_text())
        picture = data_uri(read_face(path.parent / "sheet.png"))
        caption = html.escape(f"X-ray {record['xray_crc32']}, prompt “{record['prompt']}”")
        parts.append(f'<figure class=sheets><img class=sheet src="{picture}" ')
        parts.append(f'alt="reconstruction"><figcaption>{caption}</figcaption></figure>')
    return "<h2>Reconstructions</h2>" + "".join(parts) if parts else ""


def _is_main(key: str) -> bool:
    """Returns True for the loss and for main metrics of validation faces."""
    part, _, metric = key.partition("/")
    name = metric.partition("/")[0]
    return key == "loss" or (part == "validation" and name in METRICS and METRICS[name].main)


def _points(workdir: pathlib.Path) -> dict[str, list[tuple[float, float]]]:
    """Returns `(step, value)` of each logged scalar.

    A resumed run may log a step twice; the last value counts.
    """
    values: dict[str, dict[float, float]] = {}
    for entry in logged(workdir):
        for name, value in entry.items():
            values.setdefault(name, {})[entry["step"]] = value
    return {name: sorted(of_name.items()) for name, of_name in values.items()}
