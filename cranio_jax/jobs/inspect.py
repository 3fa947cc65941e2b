"""A look at the data before anything is trained on it: counts, what is odd, and a page of pictures."""

import base64
import html
import io
import itertools
import pathlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import ml_collections
import numpy as np
import tqdm
from PIL import Image, ImageDraw

from cranio_jax import data
from cranio_jax.files.atomic import whole_file, write_json
from cranio_jax.reporting.notice import NOTICE
from cranio_jax.reporting.pages import STYLE
from data_builders.images.burned_in import find_text
from data_builders.images.likeness import duplicates, signature
from data_builders.lists.entries import Entry, of_records

SHOWN = 48  # pictures of a kind on the page
THUMBNAIL = 160  # pixels
LEGIBLE = (
    200  # pixels; in smaller pictures teeth and noses look like letters, and letters like nothing
)
AGES = (0, 18, 30, 40, 50, 60, 70, 80, 121)
SQUEEZED = 0.3  # of the range of greys: an X-ray whose middle 90 % of pixels use less
BURNED_OUT = 0.3  # of an X-ray's pixels that are white
GREYS = 48  # an X-ray has more different ones
ENLARGED = 0.75  # of the record's side: an X-ray's file has more pixels along its longer one
COMMON = 0.8  # of all X-rays: what is odd about more is told of all
OUTLYING = 6.0  # deviations from the median, of the median absolute one


def inspect(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Looks at every X-ray of `config.data` once; writes inspect.json, masked.csv and inspect.html into `workdir`.

    A builder that can tell of its pairs without building (`entries`) is not built.
    """
    builder = data.open_builder(config.data)
    entries = (
        list(builder.entries())
        if hasattr(builder, "entries")
        else list(of_records(data.make_builder(config.data)))
    )
    xrays = list({entry.key: entry for entry in entries}.values())
    seen = _look_at(xrays)
    found = {"data": builder.info.full_name, "pairs": len(entries), "xrays": len(xrays)} | _counts(
        entries, xrays
    )
    found |= {
        "duplicates": [
            {"first": xrays[i].where, "second": xrays[j].where, "cosine": round(c, 4)}
            for i, j, c in duplicates(seen["signature"], [entry.subject for entry in xrays])
        ],
        "painted_over": sum(bool(entry.masked or entry.boxes) for entry in xrays),
        "suspected_text": [
            entry.where for entry, boxes in zip(xrays, seen["text"], strict=True) if boxes
        ],
        "odd_exposure": _odd_exposure(xrays, seen["exposure"]),
        "remarks": _remarks(xrays, builder),
    }
    write_json(workdir / "inspect.json", found)
    with whole_file(workdir / "masked.csv") as file:
        file.write("xray,subject,view,masked\n")
        file.writelines(
            f"{e.where},{e.subject},{e.told['xray_view']},{e.masked or 0:.5f}\n" for e in xrays
        )
    with whole_file(workdir / "inspect.html") as file:
        file.write(_page(found, entries, xrays, seen["text"]))
    return found


def _decoded(png: bytes) -> np.ndarray:
    """`(height, width, channels)`, uint8, RGB."""
    return cv2.cvtColor(
        cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
    )


def _look_at(xrays: Sequence[Entry]) -> dict[str, Any]:
    """Each X-ray's signature, its text as boxes, and its exposure."""
    signatures, text, exposure = [], [], []
    for entry in tqdm.tqdm(xrays, desc="looking", unit="X-rays"):
        picture = _decoded(entry.xray())[..., 0]
        signatures.append(signature(picture))
        side = max(picture.shape)
        text.append(find_text(picture / np.float32(255.0), side) if side >= LEGIBLE else [])
        rows, columns = (np.flatnonzero((picture > 8).any(axis)) for axis in (1, 0))
        inside = (
            picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else picture
        )  # of black bars
        dark, bright = np.percentile(inside, [5, 95])
        exposure.append(
            Exposure(
                mean=picture.mean(),
                contrast=picture.std(),
                rim=_rim(inside),
                used=(bright - dark) / 255.0,
                white=(inside == 255).mean(),
                greys=len(np.unique(inside)),
                enlarged=bool(entry.shape) and max(entry.shape) < ENLARGED * max(picture.shape),
            )
        )
    return {"signature": np.stack(signatures), "text": text, "exposure": exposure}


def _rim(picture: np.ndarray) -> float:
    """The median around the middle, without the outermost pixels: scanned films have white edges."""
    outer, inner = (int(part * min(picture.shape)) for part in (0.05, 0.12))
    ring = np.zeros(picture.shape, bool)
    ring[outer : picture.shape[0] - outer, outer : picture.shape[1] - outer] = True
    ring[inner : picture.shape[0] - inner, inner : picture.shape[1] - inner] = False
    return float(np.median(picture[ring])) if ring.any() else 0.0


class Exposure(NamedTuple):
    """Of an X-ray in a record.

    Attributes:
      mean, contrast: mean and standard deviation of its pixels, in [0, 255].
      rim: the median around its middle, within black bars.
      used: the part of the range of greys that the middle 90 % of its pixels use.
      white: the share of its pixels that are white.
      greys: how many different values it has.
      enlarged: whether its file has fewer pixels than the record.
    """

    mean: float
    contrast: float
    rim: float
    used: float
    white: float
    greys: int
    enlarged: bool


def _odd_exposure(xrays: Sequence[Entry], exposure: Sequence[Exposure]) -> list[dict[str, str]]:
    """X-rays that are odd by themselves, and those far from the others of their view."""
    odd = []
    for view in sorted({entry.told["xray_view"] for entry in xrays}):
        places = [i for i, entry in enumerate(xrays) if entry.told["xray_view"] == view]
        values = np.array([exposure[i][:2] for i in places])
        middle = np.median(values, 0)
        spread = np.maximum(1.4826 * np.median(np.abs(values - middle), 0), 2.0)
        for place, away in zip(places, (values - middle) / spread, strict=True):
            if why := [*_unlike_others(*away), *_odd_alone(exposure[place])]:
                odd.append({"xray": xrays[place].where, "why": ", ".join(why)})
    return odd


def _unlike_others(mean: float, contrast: float) -> list[str]:
    """What is odd about an X-ray whose mean and contrast are so many deviations from the usual."""
    words = {"dark": mean < -OUTLYING, "bright": mean > OUTLYING, "flat": contrast < -OUTLYING}
    return [word for word, holds in words.items() if holds]


def _odd_alone(seen: Exposure) -> list[str]:
    """What is odd about an X-ray, whatever the others are like."""
    words = {
        "bright at the rim: inverted?": seen.rim > 128 and seen.rim > seen.mean,
        "squeezed into few greys: padding, or a wrong window?": seen.used < SQUEEZED
        or seen.greys < GREYS,
        "burned out: a wrong window?": seen.white > BURNED_OUT,
        "its file has fewer pixels than the record": seen.enlarged,
    }
    return [word for word, holds in words.items() if holds]


def _remarks(xrays: Sequence[Entry], builder: Any) -> dict[str, int]:
    """What was corrected when the files were read, and in how many of them."""
    counts = Counter(words for entry in xrays for words in entry.remarks)
    for words, rows in ((builder.info.metadata or {}).get("remarks") or {}).items():
        counts[words] = max(counts[words], len(rows))
    return dict(counts.most_common())


def _counts(entries: Sequence[Entry], xrays: Sequence[Entry]) -> dict[str, Any]:
    """How many of what, by split."""
    ages = lambda age: next(
        f"{low} to {high - 1}" for low, high in itertools.pairwise(AGES) if age < high
    )
    by: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    for entry in entries:
        by["pairs"][entry.split]["all"] += 1
        for name in ("face_view", "sex"):
            by[f"pairs, {name.replace('_', ' ')}"][entry.split][
                entry.told.get(name, "unknown")
            ] += 1
        by["pairs, age"][entry.split][
            ages(entry.told["age"]) if "age" in entry.told else "unknown"
        ] += 1
        if "bmi_change" in entry.told:
            by["pairs, BMI change"][entry.split][f"{entry.told['bmi_change']:+.0f} %"] += 1
    for entry in xrays:
        by["X-rays, view"][entry.split][entry.told["xray_view"]] += 1
    people = {(entry.split, entry.subject): entry.told.get("sex", "unknown") for entry in entries}
    for (split, _), sex in people.items():
        by["subjects, sex"][split][sex] += 1
    shapes = np.array([entry.shape for entry in xrays if entry.shape])
    sizes = (
        [f"{h} x {w}" for h, w in (shapes.min(0), np.median(shapes, 0).astype(int), shapes.max(0))]
        if len(shapes)
        else []
    )
    missing = {
        name: n
        for name in ("sex", "age", "bmi_change")
        if (n := sum(name not in entry.told for entry in entries))
    }
    return {
        "subjects": len({entry.subject for entry in entries}),
        "counts": {
            what: {split: dict(sorted(counts.items())) for split, counts in splits.items()}
            for what, splits in by.items()
        },
        "sizes": dict(zip(("smallest", "median", "largest"), sizes, strict=bool(sizes))),
        "missing": missing
        | (
            {"face": faceless} if (faceless := sum(entry.face is None for entry in entries)) else {}
        ),
    }


def text(found: dict[str, Any]) -> str:
    """For a terminal."""
    lines = [
        f"{found['data']}: {found['pairs']} pairs of {found['xrays']} X-rays of {found['subjects']} subjects"
    ]
    for what, splits in found["counts"].items():
        if what != "pairs":
            told = "; ".join(
                f"{split}: " + ", ".join(f"{n} {name}" for name, n in counts.items())
                for split, counts in splits.items()
            )
            lines.append(f"  {what}: {told}")
    return "\n".join([*lines, remarks(found)])


def remarks(found: dict[str, Any]) -> str:
    """What is not counted but noticed."""
    lines = []
    if found["sizes"]:
        lines.append(
            "  X-ray files, height x width: "
            + ", ".join(f"{name} {size}" for name, size in found["sizes"].items())
        )
    if found["missing"]:
        lines.append(
            "  missing: "
            + ", ".join(f"{name} in {n} pairs" for name, n in found["missing"].items())
        )
    lines.append(
        f"  text or markers painted over in {found['painted_over']} X-rays, suspected in {_some(found['suspected_text'])}"
    )
    same = [f"{d['first']} and {d['second']}" for d in found["duplicates"]]
    lines.append(f"  near-duplicates of different subjects: {_some(same)}")
    odd = [f"{o['xray']} ({o['why']})" for o in found["odd_exposure"]]
    lines.append(f"  odd exposure: {_some(odd)}")
    for words, count in Counter(
        why for o in found["odd_exposure"] for why in o["why"].split(", ")
    ).items():
        if count >= COMMON * found["xrays"]:
            lines.append(f"  in {count} of {found['xrays']} X-rays: {words}")
    lines += [f"  corrected in {count} files: {words}" for words, count in found["remarks"].items()]
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)}: {', '.join(names[:5])}{more}" if names else "none"


def _thumbnail(png: bytes, boxes: Sequence[Sequence[float]] = ()) -> str:
    """A data URI, boxes outlined."""
    picture = _decoded(png)
    scale = THUMBNAIL / max(picture.shape)
    image = Image.fromarray(
        cv2.resize(
            picture,
            None,
            fx=scale,
            fy=scale,
            interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC,
        )
    )
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom in boxes:
        draw.rectangle(
            [scale * left - 1, scale * top - 1, scale * right, scale * bottom],
            outline=(230, 60, 40),
        )
    content = io.BytesIO()
    image.save(content, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _figures(pictures: Sequence[tuple[str, str]]) -> str:
    parts = "".join(
        f'<figure><img src="{source}" alt="{html.escape(words)}"><figcaption>{html.escape(words)}</figcaption></figure>'
        for source, words in pictures
    )
    return f'<div class=faces style="grid-template-columns:repeat(auto-fill,minmax(9rem,1fr))">{parts}</div>'


def _spread(items: Sequence[Any]) -> list[Any]:
    return (
        [
            items[int(i)]
            for i in np.unique(np.linspace(0, len(items) - 1, min(SHOWN, len(items))).round())
        ]
        if items
        else []
    )


def _page(
    found: dict[str, Any],
    entries: Sequence[Entry],
    xrays: Sequence[Entry],
    suspected: Sequence[Sequence[Any]],
) -> str:
    painted = [entry for entry in xrays if entry.boxes]
    suspects = [(entry, boxes) for entry, boxes in zip(xrays, suspected, strict=True) if boxes]
    place = {entry.where: entry for entry in xrays}
    parts = []
    tables = ""
    for what, splits in found["counts"].items():
        names = list(dict.fromkeys(name for counts in splits.values() for name in counts))
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td>"
            + "".join(f"<td>{counts.get(name, 0)}</td>" for counts in splits.values())
            + "</tr>"
            for name in names
        )
        head = "".join(f"<th>{html.escape(split)}</th>" for split in splits)
        tables += f"<table><tr><th>{html.escape(what)}</th>{head}</tr>{rows}</table>"
    parts.append(f'<div class=curves style="align-items:flex-start">{tables}</div>')
    parts.append(f'<pre style="white-space:pre-wrap">{html.escape(remarks(found))}</pre>')

    section = lambda title, words, pictures: (
        f"<h2>{html.escape(title)}</h2><p class=small>{html.escape(words)}</p>{_figures(pictures)}"
    )
    if painted:
        told = lambda entry: f"{entry.where}, {100 * (entry.masked or 0):.1f} %"
        pictures = [
            (_thumbnail(e.xray(), e.boxes), told(e))
            for e in sorted(painted, key=lambda e: -(e.masked or 0))[:SHOWN]
        ]
        words = (
            f"{len(painted)} X-rays, the most painted first. Outlined is what was found and painted "
            "over; nothing of it must be legible."
        )
        parts.append(section("Text painted over", words, pictures))
    if suspects:
        pictures = [
            (_thumbnail(e.xray(), [(b.left, b.top, b.right, b.bottom) for b in boxes]), e.where)
            for e, boxes in suspects[:SHOWN]
        ]
        parts.append(
            section(
                "Text suspected",
                f"{len(suspects)} X-rays as they would be trained on; outlined is what looks like text.",
                pictures,
            )
        )
    if found["duplicates"]:
        pictures = [
            (_thumbnail(place[d[which]].xray()), f"{d[which]}, cosine {d['cosine']:.3f}")
            for d in found["duplicates"][: SHOWN // 2]
            for which in ("first", "second")
        ]
        parts.append(
            section(
                "Near-duplicates",
                "X-rays of different subjects that look like one, in pairs.",
                pictures,
            )
        )
    if found["odd_exposure"]:
        pictures = [
            (_thumbnail(place[odd["xray"]].xray()), f"{odd['xray']}: {odd['why']}")
            for odd in found["odd_exposure"][:SHOWN]
        ]
        parts.append(section("Odd exposure", "Far from the others of their view.", pictures))
    pictures = []
    for entry in _spread(entries):
        told = entry.told
        words = ", ".join(
            [
                entry.subject,
                entry.split,
                *([told["sex"]] if "sex" in told else []),
                *([f"{told['age']:.0f} years"] if "age" in told else []),
            ]
        )
        pictures.append((_thumbnail(entry.xray()), words))
        if entry.face:
            pictures.append(
                (
                    _thumbnail(entry.face()),
                    f"{told['face_view']}, BMI {told.get('bmi_change', 0):+.0f} %",
                )
            )
    parts.append(section("Pairs", f"{len(_spread(entries))} of {len(entries)}.", pictures))
    return f"""<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>cranio_jax: {html.escape(found["data"])}</title><style>{STYLE}</style>
<h1>{html.escape(found["data"])}</h1>
<p class=notice>These may be pictures of patients: keep this page where you keep them. {NOTICE}</p>
{"".join(parts)}
</html>
"""
