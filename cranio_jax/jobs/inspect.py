"""Job `inspect`: looks at the data before any training; counts, and what looks wrong."""

import itertools
import pathlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import tqdm
from jaxtyping import UInt8

from cranio_jax import data
from cranio_jax.files.atomic import whole_file, write_json
from cranio_jax.reporting import inspection as inspection_page
from cranio_jax.reporting.inspection import Box, decoded
from data_builders.images.burned_in import find_text
from data_builders.images.likeness import duplicates, signature
from data_builders.lists.entries import Entry, of_records

# Pixels of the longer side. In smaller pictures teeth and noses look like letters, and letters
# are illegible.
LEGIBLE = 200
# Lower bounds of the age groups, in years.
AGES = (0, 18, 30, 40, 50, 60, 70, 80, 121)
# An X-ray is odd if the middle 90 % of its pixels use a smaller part of the range of greys.
SQUEEZED = 0.3
# An X-ray is odd if a larger part of its pixels is white.
BURNED_OUT = 0.3
# An X-ray is odd if it has fewer different greys.
GREYS = 48
# An X-ray is odd if its file's longer side is below this share of the record's.
ENLARGED = 0.75
# A finding in this share of all X-rays is reported for all of them.
COMMON = 0.8
# An X-ray further from the median is odd, in units of 1.4826 median absolute deviations.
OUTLYING = 6.0


def inspect(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Looks at every X-ray of `config.data` once.

    Writes inspect.json, masked.csv and inspect.html into `workdir`; returns the content of
    inspect.json. A builder that can list its pairs without building (`entries`) is not built.
    """
    # Look.
    builder = data.open_builder(config.data)
    if hasattr(builder, "entries"):
        entries = list(builder.entries())
    else:
        entries = list(of_records(data.make_builder(config.data)))
    xrays = list({entry.key: entry for entry in entries}.values())
    looks = _look_at(xrays)
    twins = duplicates(np.stack([look.signature for look in looks]), [e.subject for e in xrays])

    # Write the findings.
    inspection = {
        "data": builder.info.full_name,
        "pairs": len(entries),
        "xrays": len(xrays),
        **_counts(entries, xrays),
        "duplicates": [
            {"first": xrays[i].where, "second": xrays[j].where, "cosine": round(cosine, 4)}
            for i, j, cosine in twins
        ],
        "painted_over": sum(bool(entry.masked or entry.boxes) for entry in xrays),
        "suspected_text": [
            entry.where for entry, look in zip(xrays, looks, strict=True) if look.text
        ],
        "odd_exposure": _odd_exposure(xrays, [look.exposure for look in looks]),
        "remarks": _remarks(xrays, builder),
    }
    write_json(workdir / "inspect.json", inspection)
    with whole_file(workdir / "masked.csv") as file:
        file.write("xray,subject,view,masked\n")
        for entry in xrays:
            view, masked = entry.told["xray_view"], entry.masked or 0
            file.write(f"{entry.where},{entry.subject},{view},{masked:.5f}\n")
    text_boxes = [look.text for look in looks]
    with whole_file(workdir / "inspect.html") as file:
        file.write(
            inspection_page.page(
                inspection, remarks(inspection), entries, xrays, text_boxes, config.augment
            )
        )
    return inspection


class Exposure(NamedTuple):
    """The exposure of an X-ray in a record.

    Attributes:
      mean, contrast: mean and standard deviation of its pixels, in [0, 255].
      rim: the median around its middle, within black bars.
      used: the part of the range of greys that the middle 90 % of its pixels use.
      white: the share of its pixels that are white.
      greys: how many different values it has.
      enlarged: True if its file has fewer pixels than the record.
    """

    mean: float
    contrast: float
    rim: float
    used: float
    white: float
    greys: int
    enlarged: bool


class Look(NamedTuple):
    """One X-ray's signature, suspected text and exposure."""

    signature: np.ndarray
    text: list[Box]
    exposure: Exposure


def _look_at(xrays: Sequence[Entry]) -> list[Look]:
    """Looks at each X-ray once."""
    looks = []
    for entry in tqdm.tqdm(xrays, desc="looking", unit="X-rays"):
        picture = decoded(entry.xray())[..., 0]
        side = max(picture.shape)
        text: list[Box] = []
        if side >= LEGIBLE:
            boxes = find_text(picture / np.float32(255.0), side)
            text = [(box.left, box.top, box.right, box.bottom) for box in boxes]
        looks.append(Look(signature(picture), text, _exposure(picture, entry)))
    return looks


def _exposure(picture: UInt8[np.ndarray, "h w"], entry: Entry) -> Exposure:
    # Without black bars.
    rows = np.flatnonzero((picture > 8).any(1))
    columns = np.flatnonzero((picture > 8).any(0))
    inside = picture
    if len(rows):
        inside = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    dark, bright = np.percentile(inside, [5, 95])
    side = max(entry.shape) if entry.shape else None
    return Exposure(
        mean=picture.mean(),
        contrast=picture.std(),
        rim=_rim(inside),
        used=(bright - dark) / 255.0,
        white=(inside == 255).mean(),
        greys=len(np.unique(inside)),
        enlarged=side is not None and side < ENLARGED * max(picture.shape),
    )


def _rim(picture: UInt8[np.ndarray, "h w"]) -> float:
    """Returns the median around the middle.

    The outermost pixels are left out, since scanned films have white edges.
    """
    outer, inner = (int(part * min(picture.shape)) for part in (0.05, 0.12))
    ring = np.zeros(picture.shape, bool)
    ring[outer : picture.shape[0] - outer, outer : picture.shape[1] - outer] = True
    ring[inner : picture.shape[0] - inner, inner : picture.shape[1] - inner] = False
    return float(np.median(picture[ring])) if ring.any() else 0.0


def _odd_exposure(xrays: Sequence[Entry], exposure: Sequence[Exposure]) -> list[dict[str, str]]:
    """Returns X-rays that are odd by themselves, or far from the others of their view."""
    odd = []
    for view in sorted({entry.told["xray_view"] for entry in xrays}):
        places = [i for i, entry in enumerate(xrays) if entry.told["xray_view"] == view]
        values = np.array([exposure[i][:2] for i in places])
        middle = np.median(values, 0)
        spread = np.maximum(1.4826 * np.median(np.abs(values - middle), 0), 2.0)
        for place, away in zip(places, (values - middle) / spread, strict=True):
            reasons = [*_unlike_others(*away), *_odd_alone(exposure[place])]
            if reasons:
                odd.append({"xray": xrays[place].where, "why": ", ".join(reasons)})
    return odd


def _unlike_others(mean: float, contrast: float) -> list[str]:
    """Returns what is odd about a mean and a contrast, given in deviations from the usual ones."""
    words = {"dark": mean < -OUTLYING, "bright": mean > OUTLYING, "flat": contrast < -OUTLYING}
    return [word for word, holds in words.items() if holds]


def _odd_alone(exposure: Exposure) -> list[str]:
    """Returns what is odd about an X-ray, whatever the others are like."""
    words = {
        "bright at the rim: inverted?": exposure.rim > 128 and exposure.rim > exposure.mean,
        "squeezed into few greys: padding, or a wrong window?": (
            exposure.used < SQUEEZED or exposure.greys < GREYS
        ),
        "burned out: a wrong window?": exposure.white > BURNED_OUT,
        "its file has fewer pixels than the record": exposure.enlarged,
    }
    return [word for word, holds in words.items() if holds]


def _remarks(xrays: Sequence[Entry], builder: Any) -> dict[str, int]:
    """Returns what was corrected when files were read, with the number of files."""
    counts = Counter(words for entry in xrays for words in entry.remarks)
    for words, rows in ((builder.info.metadata or {}).get("remarks") or {}).items():
        counts[words] = max(counts[words], len(rows))
    return dict(counts.most_common())


def _age_group(age: float | None) -> str:
    if age is None:
        return "unknown"
    return next(f"{low} to {high - 1}" for low, high in itertools.pairwise(AGES) if age < high)


def _counts(entries: Sequence[Entry], xrays: Sequence[Entry]) -> dict[str, Any]:
    """Returns counts of pairs, X-rays and people by split, sizes, and missing fields."""
    # Pairs, X-rays and people.
    counts: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    for entry in entries:
        told, split = entry.told, entry.split
        counts["pairs"][split]["all"] += 1
        counts["pairs, face view"][split][told.get("face_view", "unknown")] += 1
        counts["pairs, sex"][split][told.get("sex", "unknown")] += 1
        counts["pairs, age"][split][_age_group(told.get("age"))] += 1
        if "synthetic" in told:
            kind = "synthetic" if told["synthetic"] else "photograph"
            counts["pairs, face"][split][kind] += 1
        if "bmi_change" in told:
            counts["pairs, BMI change"][split][f"{told['bmi_change']:+.0f} %"] += 1
    for entry in xrays:
        counts["X-rays, view"][entry.split][entry.told["xray_view"]] += 1
    people = {(entry.split, entry.subject): entry.told.get("sex", "unknown") for entry in entries}
    for (split, _), sex in people.items():
        counts["subjects, sex"][split][sex] += 1

    # Sizes of the files.
    shapes = np.array([entry.shape for entry in xrays if entry.shape])
    sizes = {}
    if len(shapes):
        median = np.median(shapes, 0).astype(int)
        named = {"smallest": shapes.min(0), "median": median, "largest": shapes.max(0)}
        sizes = {name: f"{height} x {width}" for name, (height, width) in named.items()}

    # Missing values.
    missing = {}
    for name in ("sex", "age", "bmi_change"):
        missing[name] = sum(name not in entry.told for entry in entries)
    missing["face"] = sum(entry.face is None for entry in entries)
    return {
        "subjects": len({entry.subject for entry in entries}),
        "counts": {
            title: {split: dict(sorted(numbers.items())) for split, numbers in splits.items()}
            for title, splits in counts.items()
        },
        "sizes": sizes,
        "missing": {name: number for name, number in missing.items() if number},
    }


def text(inspection: dict[str, Any]) -> str:
    """Returns counts and findings, for a terminal."""
    lines = [
        f"{inspection['data']}: {inspection['pairs']} pairs of {inspection['xrays']} X-rays of"
        f" {inspection['subjects']} subjects"
    ]
    for title, splits in inspection["counts"].items():
        if title != "pairs":
            words = []
            for split, counts in splits.items():
                numbers = ", ".join(f"{number} {name}" for name, number in counts.items())
                words.append(f"{split}: {numbers}")
            lines.append(f"  {title}: {'; '.join(words)}")
    return "\n".join([*lines, remarks(inspection)])


def remarks(inspection: dict[str, Any]) -> str:
    """Returns the findings, one per line."""
    lines = []
    # Files.
    if inspection["sizes"]:
        sizes = ", ".join(f"{name} {size}" for name, size in inspection["sizes"].items())
        lines.append(f"  X-ray files, height x width: {sizes}")
    if inspection["missing"]:
        missing = ", ".join(f"{name} in {n} pairs" for name, n in inspection["missing"].items())
        lines.append(f"  missing: {missing}")

    # Pictures.
    lines.append(
        f"  text or markers painted over in {inspection['painted_over']} X-rays, suspected in"
        f" {_some(inspection['suspected_text'])}"
    )
    twins = [f"{d['first']} and {d['second']}" for d in inspection["duplicates"]]
    lines.append(f"  near-duplicates of different subjects: {_some(twins)}")
    odd = [f"{o['xray']} ({o['why']})" for o in inspection["odd_exposure"]]
    lines.append(f"  odd exposure: {_some(odd)}")

    # Findings in most X-rays.
    total = inspection["xrays"]
    reasons = (reason for o in inspection["odd_exposure"] for reason in o["why"].split(", "))
    for reason, count in Counter(reasons).items():
        if count >= COMMON * total:
            lines.append(f"  in {count} of {total} X-rays: {reason}")
    for remark, count in inspection["remarks"].items():
        lines.append(f"  corrected in {count} files: {remark}")
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)}: {', '.join(names[:5])}{more}"
