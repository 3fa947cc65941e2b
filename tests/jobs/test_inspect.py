"""job=inspect: its counts and warnings; it builds no records from a user's own data."""

import html
import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from cranio_jax import main
from cranio_jax.jobs import inspect
from data_builders.images import grey as grey_words
from data_builders.images.likeness import ALIKE, duplicates, signature
from tests.data_builders.test_skull_face import NAMES, Cohort, skull

SEEN = "As training sees them"


@pytest.fixture
def hospital(config, tmp_path):
    """A configuration for twelve X-rays of six people; some X-rays have faults."""
    cohort = Cohort(tmp_path / "hospital")
    config.data.update(builder="skull_face", data_dir=str(tmp_path / "records"))
    config.data.settings.size = 256
    config.data.skull_face.manifest = str(cohort.write())
    return config, cohort


def test_a_cohort_of_ones_own(hospital, tmp_path, capsys):
    config, cohort = hospital
    # The fourth person's lateral X-ray is a mirrored copy of the third's; the fifth's is inverted.
    paths = [cohort.folder / row["xray"] for row in cohort.rows if row["xray_view"] == "lateral"][
        ::2
    ]
    copy = (
        Image.open(paths[2])
        .resize((300, 375), Image.Resampling.BICUBIC)
        .transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    )
    copy.point(lambda v: 0.8 * v + 10).save(paths[3])
    Image.fromarray(np.uint8(255 * (1 - skull(41)))).save(paths[4])
    config.job = "inspect"
    main.run(config, tmp_path / "work")
    assert str(tmp_path / "work" / "inspect.html") in capsys.readouterr().out
    found = json.loads((tmp_path / "work" / "inspect.json").read_text())
    assert (found["pairs"], found["xrays"], found["subjects"]) == (24, 12, 6)
    assert found["counts"]["pairs, age"] == {
        "test": {"30 to 39": 2, "50 to 59": 2},
        "train": {"30 to 39": 10, "50 to 59": 10},
    }
    assert found["counts"]["X-rays, view"]["train"] == {"frontal": 5, "lateral": 5}
    assert found["sizes"] == {
        "smallest": "300 x 240",
        "median": "300 x 240",
        "largest": "375 x 300",
    }
    (pair,) = found["duplicates"]
    assert {pair["first"], pair["second"]} == {"row 12", "row 16"} and pair["cosine"] > ALIKE
    assert [odd["xray"] for odd in found["odd_exposure"]] == ["row 20"] and "inverted?" in found[
        "odd_exposure"
    ][0]["why"]
    assert found["painted_over"] >= 9 and not found["suspected_text"]
    lines = (tmp_path / "work" / "masked.csv").read_text().splitlines()
    assert lines[0] == "xray,subject,view,masked" and len(lines) == 13
    words = inspect.text(found)
    assert (
        "near-duplicates of different subjects: 1: row" in words
        and "24 pairs of 12 X-rays of 6 subjects" in words
    )
    page = (tmp_path / "work" / "inspect.html").read_text()
    for section in ("Text painted over", "Near-duplicates", "Odd exposure", "Pairs", SEEN):
        assert f"<h2>{section}</h2>" in page
    # Pairs are shown as they are, and as augmented.
    pairs, seen = (
        re.findall(r"base64,([^\"]+)", part) for part in page.split("<h2>Pairs")[1].split(SEEN)
    )
    assert len(seen) and len(seen) % 2 == 0 and not set(seen) & set(pairs)
    page = re.sub(r"base64,[^\"]+", "", page)  # encoded images may contain any word
    for text in (page, *lines, words, json.dumps(found)):
        assert not [name for name in NAMES if name.split("^")[0] in text] and "hospital" not in text
    assert not (tmp_path / "records" / "skull_face").exists()


def test_what_all_files_share_is_told(hospital, tmp_path):
    """If all X-rays have the same fault, comparing them with each other does not show it."""
    config, cohort = hospital
    rng = np.random.default_rng(0)
    for number, row in enumerate({row["xray"]: row for row in cohort.rows}.values()):
        picture = skull(number, 200, 240)
        # Pixels are twice as high as wide. Except for some dots, all grey values lie in
        # the upper quarter of the range.
        grey = np.where(rng.random(picture.shape) < 0.01, 0, 190 + 60 * picture)
        path = (cohort.folder / row["xray"]).with_suffix(".png")
        Image.fromarray(np.uint8(grey)).save(path, dpi=(200, 100))
        row["xray"] = path.relative_to(cohort.folder).as_posix()
    for row in cohort.rows:
        row["xray"] = str(row["xray"]).replace(".dcm", ".png")
    config.data.skull_face.manifest = str(cohort.write())
    config.data.skull_face.text = "keep"
    found = inspect.inspect(config, tmp_path / "work")
    words = inspect.text(found)
    assert found["remarks"] == {grey_words.NOT_SQUARE: 12}
    assert f"corrected in 12 files: {grey_words.NOT_SQUARE}" in words
    assert "in 12 of 12 X-rays: squeezed into few greys" in words
    assert html.escape(grey_words.NOT_SQUARE) in (tmp_path / "work" / "inspect.html").read_text()


def test_records_that_are_there(config, tmp_path):
    found = inspect.inspect(config, tmp_path)
    assert (
        found["pairs"] == 24 * 18
        and found["xrays"] == 48
        and found["counts"]["subjects, sex"]["train"] == {"female": 10, "male": 10}
    )
    assert not found["missing"] and "masked" in (tmp_path / "masked.csv").read_text()


def test_real_films_are_not_taken_for_inverted(shared_data):
    files = sorted((shared_data / "xrays").glob("*.jpg"))[::3]
    if not files:
        pytest.skip("the cephalograms are not here")
    pictures = [
        cv2.resize(
            cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), (206, 256), interpolation=cv2.INTER_AREA
        )
        for file in files
    ]

    def suspected(pictures):
        return sum(inspect._rim(picture) > max(128, picture.mean()) for picture in pictures)

    assert suspected(pictures) <= 1 and suspected([255 - picture for picture in pictures]) >= 8


def test_signatures():
    """Exposure, size and mirroring do not change a signature; another person does."""
    pictures = [skull(seed, 400, 400) for seed in range(6)]
    again = (
        np.asarray(
            Image.fromarray(np.float32(pictures[0])).resize((150, 150), Image.Resampling.BICUBIC)
        )
        * 0.6
        + 0.1
    )
    signatures = np.stack(
        [signature(p) for p in [*pictures, again, pictures[1][:, ::-1], pictures[2]]]
    )
    owners = [*"abcdef", "x", "y", "c"]
    assert [(i, j) for i, j, _ in duplicates(signatures, owners)] in (
        [(0, 6), (1, 7)],
        [(1, 7), (0, 6)],
    )
