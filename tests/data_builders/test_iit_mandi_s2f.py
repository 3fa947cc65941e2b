"""The public set as its authors lay it out, rebuilt here with pictures of our own."""

import csv
import io
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from cranio_jax.errors import InputError
from data_builders.iit_mandi_s2f import iit_mandi_s2f_dataset_builder as s2f
from data_builders.images import prepare
from data_builders.images.burned_in import Box

INVERTED = {("007", "sf"), ("031", "ss")}


def xray(number, view):
    rng = np.random.default_rng([number, view == "ss"])
    y, x = np.mgrid[-1:1:240j, -1:1:240j]
    radius = np.hypot(x / rng.uniform(0.55, 0.7), y / rng.uniform(0.6, 0.75))
    picture = (
        0.6 * np.exp(-(((radius - 0.9) / 0.12) ** 2))
        + 0.5 / (1 + np.exp((radius - 0.95) / 0.03))
        + 0.02
    )
    image = Image.fromarray(
        np.uint8(255 * np.clip(picture + 0.01 * rng.standard_normal(picture.shape), 0, 1))
    )
    ImageDraw.Draw(image).text(
        (6, 4), f"PATIENT {number}", font=ImageFont.load_default(14), fill=255
    )
    pixels = np.asarray(image)
    return 255 - pixels if (f"{number:03d}", view) in INVERTED else pixels


@pytest.fixture
def folder(tmp_path):
    """A zip of 102 X-rays and a CSV of 51 embeddings."""
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "xrays.zip", "w") as archive:
        for number in range(1, 52):
            for view in ("sf", "ss"):
                content = io.BytesIO()
                Image.fromarray(xray(number, view)).save(content, "PNG")
                archive.writestr(f"Xrays/{number:03d}_{view}.png", content.getvalue())
    rng = np.random.default_rng(0)
    with open(tmp_path / "set" / "embeddings.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *range(128)])
        writer.writerows(
            [f"{number:03d}_ff.jpg", *rng.standard_normal(128).round(5)] for number in range(1, 52)
        )
    return tmp_path / "set"


def build(folder, records):
    builder = s2f.Builder(
        config=s2f.make_config(folder=str(folder), size=120, pairing="matched"), data_dir=records
    )
    builder.download_and_prepare(file_format="array_record")
    return {split: list(builder.as_data_source(split)) for split in builder.info.splits}


@pytest.fixture
def quick_text(monkeypatch):
    """Finds text in three X-rays, and says of the others where it stands."""
    find, seen = prepare.find_text, []

    def find_text(picture, record):
        seen.append(picture)
        return find(picture, record) if len(seen) <= 3 else [Box(0, 0, 26, 90)]

    monkeypatch.setattr(prepare, "find_text", find_text)


def test_records(folder, tmp_path, quick_text):
    found = build(folder, tmp_path / "records")
    assert {split: len(records) for split, records in found.items()} == {"train": 82, "test": 20}
    people = {split: {r["subject"] for r in records} for split, records in found.items()}
    assert not people["train"] & people["test"] and len(people["train"] | people["test"]) == 51
    for record in (r for records in found.values() for r in records):
        picture = record["xray"][..., 0]
        assert (
            picture[:3].max() < 60 and picture[50:70, 50:70].mean() > 80
        )  # upright again, and no text
        assert (
            record["xray_masked"] > 0
            and record["embedding"].shape == (128,)
            and record["embedding"].std() > 0.5
        )
    one = {r["subject"]: r["embedding"] for records in found.values() for r in records}
    assert not np.array_equal(one[b"s001"], one[b"s002"])


def rewrite(folder, change):
    """The zip with `change(name, content)`, None to leave a member out."""
    with zipfile.ZipFile(folder / "xrays.zip") as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(folder / "xrays.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            if (changed := change(name, content)) is not None:
                archive.writestr(changed[0], changed[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda n, c: None if "013_ss" in n else (n, c),
            "X-rays are missing: 013_ss; perhaps some are mislabelled",
        ),
        (lambda n, c: (n.replace("013_ss", "013_sx"), c), "X-rays are missing: 013_ss"),
        (lambda n, c: (n, c[:200]) if "020_sf" in n else (n, c), "020_sf.png: "),
        (lambda n, c: None if "051" in n else (n, c), "X-rays are missing: 051_sf, 051_ss"),
        (
            lambda n, c: (n, bytes(600_000_000)) if "001_sf" in n else (n, c),
            "xrays.zip is too large for 51",
        ),
    ],
)
def test_a_set_that_is_not_whole(folder, tmp_path, change, words):
    rewrite(folder, change)
    with pytest.raises(InputError, match=words):
        build(folder, tmp_path / "records")


def test_other_files_that_are_wrong(folder, tmp_path):
    lines = (folder / "embeddings.csv").read_text().splitlines()
    for content, words in (
        (
            lines[:5] + ["009_ff.jpg,1,2,3"] + lines[6:],
            "embeddings.csv, row 6: expected a subject's number and 128 numbers",
        ),
        (lines + lines[-1:], "embeddings.csv, row 53: subject 051 is listed twice"),
        (lines[:-1], "X-rays without an embedding, or embeddings without X-rays: 051"),
    ):
        (folder / "embeddings.csv").write_text("\n".join(content))
        with pytest.raises(InputError, match=words):
            build(folder, tmp_path / "records")
    (folder / "xrays.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match="xrays.zip: not a readable zip file"):
        build(folder, tmp_path / "records")
    (folder / "embeddings.csv").unlink()
    with pytest.raises(InputError, match="holds no CSV files"):
        build(folder, tmp_path / "records")
    with pytest.raises(InputError, match="folder is empty; download the set"):
        build("", tmp_path / "records")
    with pytest.raises(InputError, match="is not a folder"):
        build(tmp_path / "nowhere", tmp_path / "records")
