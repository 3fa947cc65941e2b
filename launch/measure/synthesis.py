"""Compares faces made from photographs with the true ones, which procedural people have.

python launch/synthesis.py --config=configs/synthesize.py:procedural \
    [--config.evaluate.weights=FILES] [--people=N] [--sheet=FILE]

The photographs are the test people's of 45 years and usual weight. Of each, faces of the other ages
and weights are made, as job=synthesize does. The tables say how often a face is nearer to its own
person's photograph than to anybody else's, how often age and BMI, read by regressions that were
fitted to training people, move in the right direction, and, with LPIPS's files among FILES, whether
the face made is nearer to the true one than the photograph is.

--sheet writes a picture of the first people: photograph, faces made, true faces.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray as Array
from PIL import Image, ImageDraw, ImageFont

from cranio_jax import data
from cranio_jax.errors import InputError
from cranio_jax.jobs.synthesize import Maker, example_of
from cranio_jax.methods import check_method
from cranio_jax.methods.cranio_diff import variants
from cranio_jax.methods.cranio_diff.method import CranioDiff
from cranio_jax.metrics.estimates import Estimate, mean_interval
from cranio_jax.metrics.features import Features
from cranio_jax.metrics.pairs import LPIPS
from cranio_jax.runs.state import published
from launch.measure import prompt_words

_AGE = 45.0  # years, of the photographs; their BMI change is 0
_BATCH = 16
_ROUNDS = 2000  # of the bootstrap
_LINE = 20  # pixels; the height of a sheet's captions
_SHOWN = 2  # people on a sheet


class Found(NamedTuple):
    """What `measure` finds.

    Attributes:
      made: the faces, with the wanted ages and BMI changes.
      photographs: of which each was made.
      truth: the true face of each.
      right_person: whether the nearest photograph of that view, by the embedder, is the person's.
      read: by name of an attribute, its reading of the face less that of the photograph.
      lpips: by name of its key, the distances to the true face: of the face made, and of the
        photograph.
    """

    made: prompt_words.Faces
    photographs: UInt8[Array, "n h w 3"]
    truth: UInt8[Array, "n h w 3"]
    right_person: Bool[Array, "n"]
    read: dict[str, Float[Array, "n"]]
    lpips: dict[str, tuple[Float[Array, "n"], Float[Array, "n"]]]


def measure(config: ml_collections.ConfigDict, people: int) -> Found:
    """Makes faces of test people, and compares them with the true ones.

    Raises InputError if the configuration does not fit, or the records lack true faces.
    """
    features = Features(
        f"{config.synthesize.embedder_file},{config.evaluate.weights}", config.evaluate.crop
    )
    if len(features.embedders) != 1:
        raise InputError("synthesize.embedder_file: name one face-recognition network")
    variants.check(check_method(config), config.synthesize)

    # Find the photographs, and the true faces of everything that can be made of them.
    source = data.Examples(data.make_builder(config.data), "test", config, images=("face",))
    wanted, photographs = _pairs([source[i] for i in range(len(source))], people)

    # Make the faces.
    method, mesh, params, frozen = published(config)
    assert isinstance(method, CranioDiff)  # text_to_image is one without a ControlNet
    embedder = Features(config.synthesize.embedder_file, config.evaluate.crop)
    maker = Maker(config, method, mesh, params | frozen, embedder)
    asked = [
        example_of(w["id"], int(w["id_hash"]), photo["face"], w["prompt_ids"], photo["prompt_ids"])
        for w, photo in zip(wanted, photographs, strict=True)
    ]
    pictures = np.stack([face for _, face, _ in maker.best(asked)])

    # Compare them.
    made = prompt_words.known(wanted, pictures)
    photos = np.stack([photo["face"] for photo in photographs])
    truth = np.stack([w["face"] for w in wanted])
    feature_params = features.load(mesh)

    def vectors(batch: data.Batch) -> dict[str, Any]:
        (found,) = features.embed(feature_params, batch["face"]).values()
        return {"vectors": found / jnp.linalg.norm(found, axis=-1, keepdims=True)}

    def embedded(faces: UInt8[Array, "n h w 3"]) -> Float[Array, "n width"]:
        return _batched(vectors, mesh, face=faces)["vectors"]

    def distances(faces: UInt8[Array, "n h w 3"]) -> dict[str, Float[Array, "n"]]:
        def compare(batch: data.Batch) -> dict[str, Any]:
            faces, truth = batch["generated"][:, 0], batch["face"]
            described = [features.describe(feature_params, x) for x in (faces, truth)]
            found = features.compare(feature_params, *described, faces, truth)
            return {key: values for key, values in found.items() if key.startswith(LPIPS.name)}

        if not features.heads:
            return {}
        return _batched(compare, mesh, generated=faces[:, None], face=truth)

    weights = prompt_words.fitted(prompt_words.real_faces(config, "train"))
    readings = [
        prompt_words.readings(weights, made._replace(pictures=x)) for x in (pictures, photos)
    ]
    of_made, of_photos = distances(pictures), distances(photos)
    return Found(
        made=made,
        photographs=photos,
        truth=truth,
        right_person=nearest_is_own(embedded(pictures), embedded(photos), made),
        read={name: readings[0][name] - readings[1][name] for name in ("age", "bmi_change")},
        lpips={key: (of_made[key], of_photos[key]) for key in of_made},
    )


def _pairs(
    examples: list[dict[str, Any]], people: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the true faces of each person and view, and for each the photograph of them."""
    subjects = sorted({e["subject"] for e in examples})[:people]
    photographs = {
        (e["subject"], e["face_view"]): e
        for e in examples
        if (e["age"], e["bmi_change"]) == (_AGE, 0.0)
    }
    wanted = [
        e
        for e in sorted(examples, key=_order)
        if e["subject"] in subjects and (e["age"], e["bmi_change"]) != (_AGE, 0.0)
    ]
    for e in wanted:
        if (e["subject"], e["face_view"]) not in photographs:
            raise InputError(
                f"data: test people lack faces of {_AGE:g} years and usual weight. Use procedural "
                "people with all nine appearances."
            )
    if not wanted:
        raise InputError("data: test people have one face each, so there is nothing to compare")
    return wanted, [photographs[e["subject"], e["face_view"]] for e in wanted]


def _order(example: dict[str, Any]) -> tuple:
    return tuple(example[name] for name in ("subject", "face_view", "age", "bmi_change"))


def _batched(
    function: Callable[[data.Batch], dict[str, Any]], mesh: Any, **fields: Array
) -> dict[str, Array]:
    """Returns a function's outputs for arrays whose first axis is that of examples."""
    count = len(next(iter(fields.values())))
    examples = [{name: values[i] for name, values in fields.items()} for i in range(count)]
    return data.collected(jax.jit(function), examples, _BATCH, mesh, "scores")


def nearest_is_own(
    of_made: Float[Array, "n width"], of_photos: Float[Array, "n width"], made: prompt_words.Faces
) -> Bool[Array, "n"]:
    """Returns whether the photograph that is nearest to each face is its own person's.

    Args:
      of_made: unit vectors of the faces.
      of_photos: unit vectors of the photograph that each was made of.
      made: the faces; only photographs of the same view are compared.
    """
    cosines = np.where(made.views[:, None] == made.views, of_made @ of_photos.T, -np.inf)
    return made.subjects[cosines.argmax(1)] == made.subjects


def text(found: Found) -> str:
    """Returns the figures as tables in Markdown, with 95 % intervals over people."""
    people = found.made.subjects

    def cell(values: Array, where: Array, sign: str = "") -> str:
        estimate: Estimate = mean_interval(
            values[where].astype(float), people[where].tolist(), _ROUNDS, seed=0
        )
        return f"{estimate.mean:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"

    changed = {
        "age": np.sign(found.made.attributes["age"] - _AGE),
        "bmi_change": np.sign(found.made.attributes["bmi_change"]),
    }
    lines = [f"| {len(people)} faces of {len(set(people))} people | faces made |", "| --- | --- |"]
    right = cell(found.right_person, np.ones(len(people), bool))
    lines.append(f"| nearer to this person's photograph than to anybody else's | {right} |")
    for name, title in (("age", "age"), ("bmi_change", "BMI")):
        moved = cell(found.read[name] * changed[name] > 0, changed[name] != 0)
        lines.append(f"| {title}, read by a regression, moves in the right direction | {moved} |")
    older, heavier = changed["age"] != 0, changed["bmi_change"] != 0
    parts = {
        "all": older | heavier,
        "another age": older & ~heavier,
        "another weight": heavier & ~older,
        "both": older & heavier,
    }
    for key, (made, photo) in found.lpips.items():
        lines += ["", f"| {key} to the true face | faces made | photograph as it is | difference |"]
        lines.append("| --- | --- | --- | --- |")
        for name, here in parts.items():
            if here.any():
                cells = (cell(made, here), cell(photo, here), cell(made - photo, here, "+"))
                lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sheet(found: Found) -> Image.Image:
    """Returns the first people's faces: a row of those made above a row of the true ones."""
    made = found.made
    rows = [
        (made.subjects == subject) & (made.views == view)
        for subject in sorted(set(made.subjects))[:_SHOWN]
        for view in sorted(set(made.views))
    ]
    side = made.pictures.shape[1]
    columns = 1 + max(int(row.sum()) for row in rows)
    page = Image.new("RGB", (columns * side, 2 * len(rows) * side + _LINE), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(13)
    captions = ["photograph"] + [
        f"{age:g} years, {change:+g} %".replace("+0", "0")
        for age, change in zip(
            made.attributes["age"][rows[0]], made.attributes["bmi_change"][rows[0]], strict=True
        )
    ]
    for column, caption in enumerate(captions):
        draw.text((column * side + 4, 3), caption, "black", font)
    for number, row in enumerate(rows):
        top = _LINE + 2 * number * side
        page.paste(Image.fromarray(found.photographs[row][0]), (0, top))
        for offset, words in ((6, "above: made"), (24, "below: true")):
            draw.text((4, top + side + offset), words, "black", font)
        for column, place in enumerate(np.flatnonzero(row), 1):
            page.paste(Image.fromarray(made.pictures[place]), (column * side, top))
            page.paste(Image.fromarray(found.truth[place]), (column * side, top + side))
    return page


def main() -> None:
    """Prints the tables of the configuration that the flags name."""
    # Only here: the import defines the program's flags.
    from cranio_jax import main as program

    people = flags.DEFINE_integer("people", 20, "Test people whose faces are made.")
    sheet_file = flags.DEFINE_string("sheet", None, "Picture of the first people.")

    def run(_: list[str]) -> None:
        found = measure(program._CONFIG.value, people.value)
        print(text(found))
        if sheet_file.value:
            sheet(found).save(sheet_file.value)

    sys.path.append(str(program.CHECKOUT))
    app.run(run, flags_parser=program.parse)
