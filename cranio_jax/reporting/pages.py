"""One page to look at: the table, X-ray | truth | faces, curves. It needs no network."""

import base64
import html
import io
import itertools
import json
import pathlib
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from cranio_jax.errors import InputError
from cranio_jax.files.atomic import whole_file
from cranio_jax.files.pictures import read_face
from cranio_jax.reporting import tables
from cranio_jax.reporting.notice import NOTICE
from cranio_jax.runs.log import logged

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; max-width: 74rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.notice { background: #fff4de; border-left: 4px solid #d98a00; padding: .6rem .9rem; }
table { border-collapse: collapse; } th, td { padding: .35rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid #dfe4ea; }
th:first-child, td:first-child { text-align: left; } .interval { color: #66707d; font-size: .85em; white-space: nowrap; display: block; }
.faces { display: grid; gap: .5rem; overflow-x: auto; } .faces figure { margin: 0; text-align: center; }
.faces img, .sheet { width: 100%; image-rendering: auto; border-radius: 3px; display: block; } figcaption, .small { font-size: .8rem; color: #66707d; }
.wide { overflow-x: auto; } .curves { display: flex; flex-wrap: wrap; gap: 1rem; } pre { background: #f5f7f9; padding: .8rem; overflow-x: auto; font-size: .8rem; }
"""


def _image(picture: np.ndarray, scale: int = 1) -> str:
    """A data URI of a picture, enlarged smoothly by `scale`."""
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _curve(points: list[tuple[float, float]], title: str) -> str:
    """A line chart of `(step, value)` with a logarithmic value axis, as SVG."""
    if len(points) < 2 or min(v for _, v in points) <= 0:
        return ""
    steps, values = np.array(points).T
    logs = np.log10(values)
    low, high = np.floor(logs.min() * 10) / 10, np.ceil(logs.max() * 10) / 10
    width, height, left, bottom = 560, 230, 62, 34
    x = left + (steps - steps[0]) / (steps[-1] - steps[0]) * (width - left - 12)
    y = (high - logs) / max(high - low, 1e-9) * (height - bottom - 14) + 10
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    ticks = "".join(
        f'<text x="{left - 8}" y="{(high - v) / max(high - low, 1e-9) * (height - bottom - 14) + 14:.0f}" text-anchor="end">{10**v:.2g}</text>'
        for v in np.linspace(low, high, 4)
    )
    ends = "".join(
        f'<text x="{a:.0f}" y="{height - 12}" text-anchor="{anchor}">{s:.0f}</text>'
        for a, s, anchor in ((x[0], steps[0], "middle"), (x[-1], steps[-1], "end"))
    )
    return (
        f'<figure style="margin:0"><svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{html.escape(title)}" style="font-size:12px;fill:#66707d;max-width:100%">'
        f'<polyline points="{left},10 {left},{height - bottom} {width - 12},{height - bottom}" fill="none" stroke="#b9c2cc"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f6fb2" stroke-width="1.6"/>{ticks}{ends}'
        f'<text x="{width / 2:.0f}" y="{height - 2}" text-anchor="middle">step</text></svg><figcaption>{html.escape(title)}</figcaption></figure>'
    )


# One for each row of a study, which has up to twelve; of one experiment the first few.
_COLOURS = ("#1f6fb2", "#7aa6cf", "#a32020", "#8a8f98", "#11743a", "#d98a00")
_COLOURS += ("#7b3fa0", "#e377c2", "#17a2a2", "#6b4423", "#b5bd22", "#1b1f24")


def _match_curves(results: dict[str, Any]) -> str:
    """Cumulative match curves of each embedder and protocol, as SVG."""
    charts = []
    for embedder, protocols in results["retrieval"].items():
        for protocol, part in protocols.items():
            lines, names = "", ""
            length = min(20, *map(len, part["curves"].values()))
            for colour, (name, curve) in zip(
                itertools.cycle(_COLOURS), part["curves"].items(), strict=False
            ):
                points = " ".join(
                    f"{34 + 250 * i / max(length - 1, 1):.1f},{10 + 150 * (1 - v):.1f}"
                    for i, v in enumerate(curve[:length])
                )
                lines += f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
                names += f'<span style="color:{colour}">■</span> {html.escape(name)}<br>'
            axes = (
                '<polyline points="34,10 34,160 284,160" fill="none" stroke="#b9c2cc"/>'
                + "".join(
                    f'<text x="28" y="{14 + 150 * (1 - v):.0f}" text-anchor="end">{v:g}</text>'
                    for v in (0, 0.5, 1)
                )
            )
            ends = f'<text x="34" y="176" text-anchor="middle">1</text><text x="284" y="176" text-anchor="middle">{length}</text>'
            title = f"subject among the first k, {embedder}, {protocol}"
            charts.append(
                f'<figure style="margin:0"><svg viewBox="0 0 296 180" width="296" role="img" aria-label="{html.escape(title)}" style="font-size:12px;fill:#66707d">{axes}{lines}{ends}</svg>'
                f"<figcaption>{html.escape(title)}<br>{names}</figcaption></figure>"
            )
    return f"<h2>Match curves</h2><div class=curves>{''.join(charts)}</div>" if charts else ""


def _gallery(path: pathlib.Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
        columns = {"X-ray": kept["xray"], "truth": kept["face"]}
        columns |= {str(row): kept["faces"][:, i] for i, row in enumerate(kept["rows"])}
        return "<h2>People it never saw</h2>" + _side_by_side(columns, kept["captions"])


def _side_by_side(columns: dict[str, np.ndarray], captions: np.ndarray) -> str:
    """Rows of pictures, a column for each kind, each row under its caption."""
    parts = []
    for i, caption in enumerate(captions):
        figures = "".join(
            f'<figure><img src="{_image(pictures[i], max(1, 192 // pictures.shape[1]))}" alt="{html.escape(name)}">'
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
            for name, pictures in columns.items()
        )
        parts.append(
            f'<div class=small>{html.escape(str(caption))}</div><div class=faces style="grid-template-columns:repeat({len(columns)},minmax(6rem,1fr))">{figures}</div>'
        )
    return "".join(parts)


def _reconstructions(folder: pathlib.Path) -> str:
    parts = []
    for record_path in sorted(folder.glob("*/record.json")):
        record = json.loads(record_path.read_text())
        picture = read_face(record_path.parent / "sheet.png")
        caption = f"X-ray {record['xray_crc32']}, prompt “{record['prompt']}”; left to right: X-ray, mean, spread, samples"
        parts.append(
            f'<figure style="margin:0 0 1rem"><img class=sheet src="{_image(picture, 2)}" alt="reconstruction"><figcaption>{html.escape(caption)}</figcaption></figure>'
        )
    return "<h2>Reconstructions</h2>" + "".join(parts) if parts else ""


def study(
    results: dict[str, Any], folders: dict[str, list[pathlib.Path]], workdir: pathlib.Path
) -> pathlib.Path:
    """Writes study.html: the tables of a comparison, the same people by each method, and how each method's scores rose.

    Args:
      results: of `comparison.compare`.
      folders: of the runs, by method, a folder for each seed.
      workdir: where to.
    """
    pictures: dict[str, np.ndarray] = {}
    for name, (first, *_) in folders.items():
        if (first / "pictures.npz").exists():
            with (
                (first / "pictures.npz").open("rb") as file,
                np.load(file, allow_pickle=False) as kept,
            ):
                pictures = pictures or {
                    "X-ray": kept["xray"],
                    "truth": kept["face"],
                    "captions": kept["captions"],
                }
                pictures[name] = kept["faces"][:, 0]
    captions = pictures.pop("captions", np.zeros(0))
    curves = ""
    for name, (first, *_) in folders.items():
        told = _points(first)
        charts = [
            _curve(points, f"{name}: {metric}")
            for metric, points in told.items()
            if _watched(metric)
        ]
        curves += f"<div class=curves>{''.join(charts)}</div>"
    seeds = ", ".join(f"{name} {len(seeds)}" for name, seeds in results["seeds"].items())
    page = f"""<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>cranio_jax: {html.escape(results["study"])}</title><style>{STYLE}</style>
<h1>Faces from skull X-rays: {html.escape(results["study"])}</h1>
<p class=small>{results["images"]} pictures of {results["subjects"]} people; seeds: {html.escape(seeds)}</p>
<p class=notice>{NOTICE}</p>
{tables.web(results, "pictures")}
<h2>The same people by each method</h2>{_side_by_side(pictures, captions)}
{tables.web(results, "retrieval")}
{_match_curves(results)}
<h2>While they trained</h2>{curves}
</html>
"""
    with whole_file(workdir / "study.html") as file:
        file.write(page)
    return workdir / "study.html"


def _watched(name: str) -> bool:
    """Whether a curve is worth a look."""
    part, _, metric = name.partition("/")
    return name == "loss" or (
        part == "validation"
        and metric.split("/")[0] in ("psnr", "ssim", "lpips", "identity", "arcface")
    )


def _points(workdir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """The points of each logged scalar; a resumed run may log a step twice, of which the last counts."""
    points: dict[str, dict[int, float]] = {}
    for entry in logged(workdir):
        for name, value in entry.items():
            points.setdefault(name, {})[entry["step"]] = value
    return {name: sorted(found.items()) for name, found in points.items()}


def report(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Writes report.html from results.json, metrics.jsonl, pictures.npz and the reconstructions in `workdir`."""
    del config
    path = workdir / "results.json"
    if not path.exists():
        raise InputError(f"{workdir} holds no results.json; run job=evaluate first")
    results = json.loads(path.read_text())
    people = f"{results['images']} pictures of {results.get('subjects', 0)} people"
    if "unpaired" in results:
        people = f"Pictures: {tables.counted(results)}"
    curves = _points(workdir).get("loss", [])
    origin = (
        f", step {results['step']}, {sum(results['parameters'].values()) / 1e6:.1f} M parameters"
        if "step" in results
        else ""
    )
    told = (
        "seed",
        "step",
        "data",
        "networks",
        "weights_sha256",
        "versions",
        "devices",
        "commit",
        "parameters",
    )
    training = f"<h2>Training</h2>{_curve(curves, 'loss on training batches')}" if curves else ""
    page = f"""<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>cranio_jax: {html.escape(results["config"]["name"])}</title><style>{STYLE}</style>
<h1>Faces from skull X-rays: {html.escape(results["config"]["name"])}</h1>
<p class=small>{people}{origin}</p>
<p class=notice>{NOTICE}</p>
{tables.web(results, "pictures")}
<p class=small>The mean face is the training mean of the same view, age and BMI change; shuffled X-rays give each person somebody else's
X-ray of the same view and sex. A mean of several samples is no face that was drawn and is not compared with single samples.</p>
{_gallery(workdir / "pictures.npz")}
{tables.web(results, "retrieval")}
{_match_curves(results)}
{_reconstructions(workdir / "reconstructions")}
{training}
<h2>Where this comes from</h2>
<pre>{html.escape(json.dumps({k: results[k] for k in told if k in results}, indent=2))}</pre>
<details><summary>Configuration</summary><pre>{html.escape(json.dumps(results["config"], indent=2))}</pre></details>
</html>
"""
    with whole_file(workdir / "report.html") as file:
        file.write(page)
    return workdir / "report.html"
