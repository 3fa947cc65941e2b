"""Measures what each word of the prompt does to a face.

python launch/prompt_words.py --config=CONFIG [--workdir=DIR] [--people=N] [--sheet=FILE]

View, sex, age and BMI change are read from faces by ridge regressions on their pixels. They are
fitted to the faces of training people; all but that of the view are fitted to each view alone. Each
test person's X-ray and noise then give a face for every profile of the procedural cohort, and the
regressions read these. The real faces of test people are read too, and printed beside them: a
regression draws its readings towards the mean, in both alike.

--sheet writes the faces of the first person for all profiles into a picture.
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import app, flags
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from PIL import Image, ImageDraw, ImageFont

from cranio_jax import data
from cranio_jax.data.prompts import profile_numbers
from cranio_jax.evaluation.generation import Generator
from cranio_jax.metrics.estimates import Estimate, mean_interval
from data_builders.conditions import SEXES, VIEWS

SIDE = 32  # pixels; the faces that regressions read
_STRENGTH = 30.0  # of the ridge, in pictures
_ROUNDS = 2000  # of the bootstrap
_LINE = 20  # pixels; the height of a sheet's captions


class Word(NamedTuple):
    """A word of the prompt: an attribute and its value, as numbers."""

    attribute: str
    value: float


class Faces(NamedTuple):
    """Faces whose attributes are known or wanted.

    Attributes:
      pictures: `(n, height, width, 3)` in 0..255.
      views: of each.
      subjects: whose X-ray or face each is.
      attributes: `(n,)` by name; view is -1 (frontal) or 1 (lateral), sex -1 (female) or 1 (male),
        age in years, BMI change in percent.
    """

    pictures: UInt8[Array, "n h w 3"]
    views: Array
    subjects: Array
    attributes: dict[str, Array]


def thumbnails(pictures: UInt8[Array, "n h w 3"]) -> Float[Array, "n m"]:
    """Returns the means of SIDE x SIDE blocks of pixels, in [-1, 1]."""
    n, height, width, _ = pictures.shape
    blocks = pictures.reshape(n, SIDE, height // SIDE, SIDE, width // SIDE, 3)
    return blocks.mean((2, 4)).reshape(n, -1) / 127.5 - 1.0


def fitted(faces: Faces) -> dict[tuple[str, str], Float[Array, "m"]]:
    """Returns the weights of a ridge regression for each view and attribute."""
    weights = {}
    rows = thumbnails(faces.pictures)
    for view in VIEWS:
        for name, values in faces.attributes.items():
            here = (faces.views == view) | (name == "view")
            weights[view, name] = _ridge(rows[here], values[here])
    return weights


def _ridge(rows: Float[Array, "n m"], values: Float[Array, "n"]) -> Float[Array, "m+1"]:
    """Returns the weights of a ridge regression; the last one is its constant."""
    centre = rows.mean(0)
    middle = values.mean()
    rows = rows - centre
    gram = rows.T @ rows + _STRENGTH * np.eye(rows.shape[1])
    slopes = np.linalg.solve(gram, rows.T @ (values - middle))
    return np.append(slopes, middle - centre @ slopes)


def readings(
    weights: dict[tuple[str, str], Float[Array, "m"]], faces: Faces
) -> dict[str, Float[Array, "n"]]:
    """Returns what the regressions read from faces, by attribute."""
    rows = thumbnails(faces.pictures)
    return {
        name: np.array(
            [
                row @ weights[view, name][:-1] + weights[view, name][-1]
                for row, view in zip(rows, faces.views, strict=True)
            ]
        )
        for name in faces.attributes
    }


def by_word(faces: Faces, read: dict[str, Float[Array, "n"]]) -> dict[Word, Estimate]:
    """Returns the mean reading of the faces with each word, over people."""
    means = {}
    for name, values in faces.attributes.items():
        for value in np.unique(values):
            here = values == value
            subjects = faces.subjects[here].tolist()
            means[Word(name, float(value))] = mean_interval(
                read[name][here], subjects, _ROUNDS, seed=0
            )
    return means


def known(examples: list[dict[str, Any]], pictures: UInt8[Array, "n h w 3"]) -> Faces:
    """Returns pictures with the subjects, views and attributes of examples."""
    return Faces(
        pictures=pictures,
        views=np.array([e["face_view"] for e in examples]),
        subjects=np.array([e["subject"] for e in examples]),
        attributes={
            "view": np.array([2.0 * VIEWS.index(e["face_view"]) - 1.0 for e in examples]),
            "sex": np.array([2.0 * SEXES.index(e["sex"]) - 1.0 for e in examples]),
            "age": np.array([e["age"] for e in examples]),
            "bmi_change": np.array([e["bmi_change"] for e in examples]),
        },
    )


def real_faces(config: ml_collections.ConfigDict, split: str) -> Faces:
    """Returns the faces of a split."""
    source = data.Examples(data.make_builder(config.data), split, config, images=("face",))
    examples = [source[i] for i in range(len(source))]
    return known(examples, np.stack([e["face"] for e in examples]))


def profiles(source: data.Examples, people: int) -> Iterator[dict[str, Any]]:
    """Yields, for some people, the X-ray of each view with every profile of that view.

    All profiles of an X-ray have the same noise.
    """
    ages = sorted({age for _, age, _ in source.conditions()})
    changes = sorted({change for _, _, change in source.conditions()})
    seen: dict[str, set[str]] = {}
    for i in range(len(source)):
        example = source[i]
        view = example["face_view"]
        views = seen.setdefault(example["subject"], set())
        if example["xray_view"] != view or view in views or len(seen) > people:
            continue
        views.add(view)
        for sex in SEXES:
            for age in ages:
                for change in changes:
                    ids = source.prompt_ids(view, sex, age, change)
                    wanted = {"sex": sex, "age": age, "bmi_change": change, "prompt_ids": ids}
                    numbers = profile_numbers(view, sex, age, change)
                    yield example | wanted | {"profile": numbers}


class Found(NamedTuple):
    """What `measure` finds: the generated faces, and the readings by word."""

    made: Faces
    real: dict[Word, Estimate]
    generated: dict[Word, Estimate]


def measure(config: ml_collections.ConfigDict, workdir: pathlib.Path | None, people: int) -> Found:
    """Returns the generated faces, and the readings of real and of generated faces."""
    weights = fitted(real_faces(config, "train"))
    real = real_faces(config, "test")
    test = data.Examples(data.make_builder(config.data), "test", config, images=("xray", "face"))
    examples = list(profiles(test, people))
    generator = Generator(config, workdir, "evaluate")
    made = known(examples, generator.draw(examples, title="faces of all profiles"))
    return Found(
        made,
        real=by_word(real, readings(weights, real)),
        generated=by_word(made, readings(weights, made)),
    )


def text(real: dict[Word, Estimate], generated: dict[Word, Estimate]) -> str:
    """Returns the readings as a table in Markdown."""
    lines = ["| word | real faces | generated faces |", "| --- | --- | --- |"]
    for word in generated:
        cells = [_cell(which.get(word)) for which in (real, generated)]
        lines.append(f"| {word.attribute} {word.value:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sheet(made: Faces) -> Image.Image:
    """Returns the first person's faces: a row for each view and sex, with all ages and BMIs."""
    first = made.subjects == made.subjects[0]
    ages = np.unique(made.attributes["age"])
    columns = [(age, change) for age in ages for change in np.unique(made.attributes["bmi_change"])]
    side = made.pictures.shape[1]
    page = Image.new("RGB", (len(columns) * side, 4 * side + _LINE), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(13)
    for column, (age, change) in enumerate(columns):
        draw.text((column * side + 4, 3), f"{age:g} years, {change:+g} %", "black", font)
        for row, (view, sex) in enumerate((v, s) for v in VIEWS for s in (-1, 1)):
            wanted = first & (made.views == view) & (made.attributes["sex"] == sex)
            wanted &= made.attributes["age"] == age
            wanted &= made.attributes["bmi_change"] == change
            face = Image.fromarray(made.pictures[wanted][0])
            page.paste(face, (column * side, _LINE + row * side))
    return page


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def main() -> None:
    """Prints the table of the configuration that the flags name."""
    # Only here: the import defines the program's flags.
    from cranio_jax import main as program

    people = flags.DEFINE_integer("people", 20, "Test people whose X-rays are used.")

    sheet_file = flags.DEFINE_string("sheet", None, "Picture of all profiles of one person.")

    def run(_: list[str]) -> None:
        workdir = program._WORKDIR.value
        found = measure(
            program._CONFIG.value, pathlib.Path(workdir) if workdir else None, people.value
        )
        print(text(found.real, found.generated))
        if sheet_file.value:
            sheet(found.made).save(sheet_file.value)

    sys.path.append(str(program.CHECKOUT))
    app.run(run, flags_parser=program.parse)
