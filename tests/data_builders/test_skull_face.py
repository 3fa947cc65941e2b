"""A user's own cohort: from files of all kinds to records without names.

The tests also cover everything that can be wrong with the files.
"""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time

import ml_collections
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont

from configs import demo
from cranio_jax import data
from cranio_jax.errors import InputError
from data_builders.errors import UnreadableError
from data_builders.images import staging
from data_builders.lists import splits
from data_builders.skull_face.manifest import LANDMARKS
from data_builders.skull_face.skull_face_dataset_builder import Builder, make_config

NAMES = ("Doe^Jane", "Smith^John", "Muster^Erika", "Rossi^Mario", "Dupont^Luc", "Novak^Eva")
COLUMNS = (
    "subject",
    "xray",
    "xray_view",
    "face",
    "face_view",
    "age",
    "sex",
    "bmi_change",
    "split",
    "synthetic",
    *LANDMARKS,
)
POINTS = (40, 50, 62, 51, 50, 66, 43, 80, 60, 81)  # on a photograph of 100 x 120 pixels


def skull(seed, height=300, width=240):
    """Returns a round, grainy shape in [0, 1] with a name burned into its corner."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = np.hypot(x / rng.uniform(0.6, 0.75), y / rng.uniform(0.65, 0.8))
    picture = (
        0.7 * np.exp(-(((radius - 0.9) / 0.12) ** 2))
        + 0.45 / (1 + np.exp((radius - 0.95) / 0.03))
        + 0.05
    )
    for across, down in rng.uniform(-0.5, 0.5, (12, 2)):
        picture -= 0.2 * np.exp(-((x - across) ** 2 + (y - down) ** 2) / 0.008)
    return np.clip(picture + 0.01 * rng.standard_normal(picture.shape), 0, 1)


def write_dicom(path, picture, name, **changes):
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = (
        pydicom.uid.DigitalXRayImageStorageForPresentation
    )
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Rows, data.Columns = picture.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME1"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PatientName, data.PatientID = name, "ID-4711"
    data.PixelData = np.uint16((1 - picture) * 4095).tobytes()
    for key, value in changes.items():
        setattr(data, key, value)
    data.save_as(path, enforce_file_format=True)


def burned(picture, words):
    image = Image.fromarray(np.uint8(picture * 255))
    ImageDraw.Draw(image).text((4, 4), words, font=ImageFont.load_default(16), fill=255)
    return np.asarray(image) / 255


class Cohort:
    """Six people: two X-rays and four photographs each, in files that carry their names."""

    def __init__(self, folder):
        self.folder, self.rows = folder, []
        (folder / "Jane_Doe_archive").mkdir(parents=True)
        for number, name in enumerate(NAMES):
            for v, view in enumerate(("frontal", "lateral")):
                xray = f"Jane_Doe_archive/{name}_{view}.{('dcm', 'png')[v]}"
                picture = burned(skull(10 * number + v), f"{name} 12/03/1971" if v else "R")
                if v:
                    Image.fromarray(np.uint8(picture * 255)).save(folder / xray)
                else:
                    write_dicom(folder / xray, picture, name)
                for age in (30, 50):
                    face = f"{name}_{view}_{age}.jpg"
                    pixels = (
                        np.random.default_rng([number, v, age])
                        .integers(0, 256, (6, 5, 3))
                        .astype(np.uint8)
                    )
                    Image.fromarray(pixels).resize((100, 120), Image.Resampling.BICUBIC).save(
                        folder / face, comment=name
                    )
                    row = dict.fromkeys(COLUMNS, "") | dict(
                        subject=name, xray=xray, xray_view=view, face=face, face_view=view, age=age
                    )
                    row |= {"sex": "fm"[number % 2], "split": "test" if number < 2 else "train"}
                    if not v:
                        row |= dict(zip(LANDMARKS, POINTS, strict=True))
                    self.rows.append(row)

    def write(self, rows=None, name="people.csv"):
        """Writes the manifest."""
        with open(self.folder / name, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows if rows is None else rows)
        return self.folder / name


@pytest.fixture
def cohort(tmp_path):
    return Cohort(tmp_path / "hospital")


def build(cohort, records, **settings):
    # Text detection takes most of a build; only two tests need it.
    settings = {"manifest": str(cohort.write()), "size": 64, "text": "keep"} | settings
    builder = Builder(config=make_config(**settings), data_dir=records)
    builder.download_and_prepare(file_format="array_record")
    return builder


def every_record(builder):
    return {split: list(builder.as_data_source(split)) for split in builder.info.splits}


def test_records_and_what_they_do_not_hold(cohort, tmp_path, capsys):
    builder = build(cohort, tmp_path / "records", text="paint_over")
    found = every_record(builder)
    assert {split: len(records) for split, records in found.items()} == {"test": 4, "train": 20}
    people = {split: {r["subject"] for r in records} for split, records in found.items()}
    assert (
        len(people["test"]) == 1
        and len(people["train"]) == 5
        and not people["test"] & people["train"]
    )
    for record in (r for records in found.values() for r in records):
        assert record["xray"].shape == (64, 64, 1) and record["face"].shape == (64, 64, 3)
        assert (
            record["xray_view"] == record["face_view"]
            and record["age"] in (30, 50)
            and record["id"].decode().isprintable()
        )
        assert record["xray_masked"] > 0
        assert np.isfinite(record["face_landmarks"]).all() == (record["face_view"] == b"frontal")
        # The skull is bright and central although the files are MONOCHROME1; the name is gone.
        xray = record["xray"][..., 0].astype(float) / 255
        assert xray[20:44, 20:44].mean() > 0.25 and xray[:, :5].max() == 0 and xray[:6].max() < 0.4
    # No file of the build holds a name or a path on the disk.
    told = [name.split("^")[0].encode() for name in NAMES] + [
        b"hospital",
        b"_archive",
        b"ID-4711",
        str(tmp_path).encode(),
    ]
    files = [path for path in (tmp_path / "records").rglob("*") if path.is_file()]
    assert len(files) > 60
    for path in files:
        content = path.read_bytes() + str(path.relative_to(tmp_path / "records")).encode()
        assert not [word for word in told if word in content], path
    assert "text or markers painted over in 12 of 12 X-rays" in capsys.readouterr().err
    salt = cohort.folder / "people.salt"
    assert salt.stat().st_mode & 0o777 == 0o600


def test_the_same_again_and_other_pseudonyms(cohort, tmp_path):
    def records(folder):
        return {
            r["id"]: r
            for part in every_record(build(cohort, tmp_path / folder)).values()
            for r in part
        }

    first, second = records("a"), records("b")
    assert first.keys() == second.keys()
    for key in first:
        for name in first[key]:
            np.testing.assert_array_equal(first[key][name], second[key][name])
    (cohort.folder / "people.salt").write_text("another secret of somebody\n")
    assert not first.keys() & records("c").keys()


@pytest.mark.parametrize(("pairing", "count"), [("matched", 24), ("all_views", 48), ("listed", 23)])
def test_pairings(cohort, tmp_path, pairing, count):
    if pairing == "listed":
        cohort.rows.pop()
    builder = build(cohort, tmp_path, pairing=pairing)
    records = [r for part in every_record(builder).values() for r in part]
    assert len(records) == len({r["id"] for r in records}) == count
    assert any(r["xray_view"] != r["face_view"] for r in records) == (pairing == "all_views")


def test_landmarks_go_with_the_picture(cohort, tmp_path):
    cohort.rows = [row for row in cohort.rows if row["face_view"] == "frontal"]
    for align in (False, True):
        builder = build(cohort, tmp_path / str(align), align=align)
        record = next(r for r in builder.as_data_source("train") if r["face_view"] == b"frontal")
        transform = record["face_transform"]
        back = record["face_landmarks"] @ transform[:, :2].T + transform[:, 2]
        np.testing.assert_allclose(back, np.reshape(POINTS, (5, 2)), atol=1e-3)
        eyes = np.linalg.norm(record["face_landmarks"][1] - record["face_landmarks"][0])
        assert eyes == pytest.approx(12.0 if align else 22 * 64 / 120, abs=1.5)
    cohort.rows[-1].update(eye_1_x=500)
    with pytest.raises(
        InputError,
        match="row 13: face='Novak.Eva_frontal_50.jpg': its landmarks lie outside the photograph "
        "of 100 x 120 pixels",
    ):
        build(cohort, tmp_path / "none", align=True)


def test_splits(cohort, tmp_path):
    def subjects(builder, split):
        return {r["subject"] for r in builder.as_data_source(split)}

    by_column = build(cohort, tmp_path, split="column")
    assert len(subjects(by_column, "test")) == 2 and by_column.info.metadata["split_by"] == "column"
    assert (
        len(subjects(build(cohort, tmp_path), "test")) == 1
    )  # split by the seed: other records in another folder
    (tmp_path / "held_out.txt").write_text(f"{NAMES[0]}\n\n{NAMES[1]}\n")
    by_list = build(cohort, tmp_path, split=str(tmp_path / "held_out.txt"))
    assert subjects(by_list, "test") == subjects(by_column, "test")
    (tmp_path / "held_out.txt").write_text("Nobody^Known\n")
    with pytest.raises(
        InputError, match="held_out.txt, line 1: no subject of that name is in the data"
    ):
        build(cohort, tmp_path, split=str(tmp_path / "held_out.txt"))
    for row in cohort.rows[:4]:
        row["split"] = ""
    with pytest.raises(InputError, match="row 5: split is empty"):
        build(cohort, tmp_path, split="column")

    sexes = {f"p{i}": ("female", "male")[i % 3 == 0] for i in range(30)}
    drawn = splits.by_seed(sexes, 0.2, 7)
    assert (
        drawn
        == splits.by_seed(dict(reversed(sexes.items())), 0.2, 7)
        != splits.by_seed(sexes, 0.2, 8)
    )
    held_out = [name for name, split in drawn.items() if split == "test"]
    assert len(held_out) == 6 and sum(sexes[name] == "male" for name in held_out) == 2
    with pytest.raises(InputError, match="leaves nobody to train on"):
        splits.by_seed({"a": "male"}, 0.2, 0)


def test_all_bad_pictures_are_told_together(cohort, tmp_path):
    folder = cohort.folder
    (folder / cohort.rows[0]["face"]).write_bytes(b"no picture")
    (folder / cohort.rows[4]["xray"]).write_bytes(
        (folder / cohort.rows[4]["xray"]).read_bytes()[:9000]
    )  # of rows 6 and 7
    write_dicom(folder / cohort.rows[8]["xray"], np.zeros((30, 20)), "Black^Box")
    write_dicom(folder / cohort.rows[12]["xray"], skull(1), "Many^Frames", NumberOfFrames=2)
    colours = np.random.default_rng(0).integers(0, 256, (30, 20, 3)).astype(np.uint8)
    Image.fromarray(colours).save(folder / cohort.rows[2]["xray"])
    with pytest.raises(InputError) as caught:
        build(cohort, tmp_path / "records")
    words = str(caught.value)
    assert words.startswith("9 rows of people.csv can't be used:\n")
    for line in (
        "people.csv, row 2: face='Doe^Jane_frontal_30.jpg': not a readable picture",
        "people.csv, row 4: xray='Doe^Jane_lateral.png': a picture in colours; an X-ray is grey",
        (
            "people.csv, row 6: xray='Smith^John_frontal.dcm': damaged, or in a form that can't be"
            " decoded"
        ),
        "people.csv, row 10: xray='Muster^Erika_frontal.dcm': all pixels have the value",
        "people.csv, row 14: xray='Rossi^Mario_frontal.dcm': a DICOM file of 2 frames",
    ):
        assert line in words
    assert words.endswith("--config.data.skull_face.on_bad_row=skip")
    assert not list((tmp_path / "records" / "skull_face").rglob("*.array_record*"))

    builder = build(cohort, tmp_path / "records", on_bad_row="skip")
    assert builder.info.metadata["skipped_rows"] == [2, 4, 5, 6, 7, 10, 11, 14, 15]
    assert sum(len(part) for part in every_record(builder).values()) == 15
    again = Builder(config=builder.builder_config, data_dir=tmp_path / "records")
    assert again.info.metadata["skipped_rows"] == builder.info.metadata["skipped_rows"]


def test_text_can_be_painted_over_kept_or_refused(cohort):
    picture = skull(3)
    Image.fromarray(np.uint8(255 * burned(picture, "DOE 1971"))).save(cohort.folder / "text.png")
    Image.fromarray(np.uint8(255 * picture)).save(cohort.folder / "none.png")

    def made(text, name="text.png"):
        return staging._xray(staging.Job("xray", cohort.folder / name, 64, text=text))

    kept, _ = made("keep")
    painted, told = made("paint_over")
    assert kept[:8, :30].max() > 100 and painted[:8, :30].max() < 60 and len(told["boxes"]) >= 1
    with pytest.raises(UnreadableError, match="text or a marker is burned into the X-ray; crop it"):
        made("refuse")
    clean, told = made("refuse", "none.png")
    assert clean.max() > 200 and told["masked"] == 0


def test_a_file_that_changes_is_noticed(cohort, tmp_path):
    build(cohort, tmp_path)
    build(cohort, tmp_path)
    write_dicom(cohort.folder / cohort.rows[0]["xray"], skull(99), "Doe^Jane")
    with pytest.raises(
        InputError, match="files that people.csv lists have changed since .* remove that folder"
    ):
        build(cohort, tmp_path)
    (cohort.folder / cohort.rows[0]["xray"]).unlink()
    build(
        cohort, tmp_path
    )  # records stay usable without the source files, as on the hosts of a pod


def test_a_build_that_is_killed_goes_on(cohort, tmp_path):
    """Finished parts are not built again."""
    big = Image.fromarray(np.uint8(skull(0, 2000, 1600) * 255))
    for number in range(16):
        big.save(cohort.folder / f"x{number}.png")
        os.utime(cohort.folder / f"x{number}.png", (number, number))
        cohort.rows.append(cohort.rows[number % 2] | {"xray": f"x{number}.png"})
    manifest = cohort.write()
    (cohort.folder / "people.salt").write_text("a secret that stays the same\n")
    code = (
        "from data_builders.skull_face.skull_face_dataset_builder import"
        f" *\nBuilder(config=make_config(manifest={str(manifest)!r}, size=64, text='keep'),"
        f" data_dir={str(tmp_path / 'records')!r}).download_and_prepare(file_format='array_record')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True
    )
    staged = tmp_path / "records" / "skull_face_staged"
    deadline = time.time() + 60
    while len(list(staged.glob("*.json"))) < 10:
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in staged.glob("*.json")}
    assert len(finished) < 28 + 24
    for path in finished:
        json.loads(path.read_text())
    builder = build(cohort, tmp_path / "records")
    assert sum(len(part) for part in every_record(builder).values()) == 24 + 16 * 2
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())


def test_a_disk_that_is_full(cohort, tmp_path):
    """Simulated by a limit on file sizes, which makes writes fail in the same way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(
            InputError,
            match="can't be written .*; make room and start again: what is finished is kept",
        ):
            staging.stage(
                [staging.Job("xray", cohort.folder / cohort.rows[0]["xray"], 256)],
                tmp_path / "staged",
                b"salt",
                "X-rays",
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "staged").iterdir())


def test_a_file_that_ends_its_decoder_is_one_bad_row(cohort, tmp_path, monkeypatch):
    """A file whose decoder process is killed counts as one bad row.

    The system kills a process that uses too much memory; here one file kills its reader.
    """
    path = cohort.folder / "deadly.png"
    Image.fromarray(np.uint8(255 * skull(1))).save(path)
    jobs = [staging.Job("xray", path.with_name(f"{n}.png"), 32, text="keep") for n in range(4)]
    for number, job in enumerate(jobs):
        job.path.write_bytes(path.read_bytes())
        os.utime(job.path, (number, number))
    monkeypatch.setattr(staging, "_make", _make_or_die)
    found = staging.stage(jobs, tmp_path / "staged", b"salt", "X-rays")
    assert [isinstance(made, staging.Ready) for made in found] == [True, True, False, True]
    assert found[2] == "crashes its decoder, perhaps for lack of memory"


def _make_or_die(item, make=staging._make):
    if item[1].path.name == "2.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return make(item)


def test_settings_that_can_not_be_meant(cohort, tmp_path):
    for wrong, words in (
        (dict(pairing="best"), "pairing='best' is not one of matched, all_views, listed"),
        (dict(text="blur"), "text='blur' is not one of"),
        (dict(size=8), "size=8 is outside"),
        (dict(test_fraction=1.5), "test_fraction=1.5 is outside"),
        (dict(split="nowhere.txt"), "nowhere.txt: No such file"),
        (dict(manifest=""), "manifest is empty"),
        (dict(manifest="nowhere.csv"), "nowhere.csv: No such file"),
    ):
        config = ml_collections.ConfigDict(dict(builder="skull_face", data_dir=str(tmp_path)))
        config.settings = {"size": 64} | {
            name: value for name, value in wrong.items() if name in ("size", "pairing")
        }
        config.skull_face = {"manifest": str(cohort.write())} | {
            n: v for n, v in wrong.items() if n not in config.settings
        }
        with pytest.raises(InputError, match=words):
            data.make_builder(config)


def test_synthetic_faces_are_told_apart(cohort, tmp_path):
    for row in cohort.rows[1::2]:  # at 50 years
        row["synthetic"] = "yes"
    builder = build(cohort, tmp_path, split="column")
    config = demo.get_config()

    def ages(split, *used):
        config.data.synthetic = used
        source = data.Examples(builder, split, config, images=())
        return sorted({source[i]["age"] for i in range(len(source))})

    assert ages("train", "train") == ages("test", "test") == [30, 50]
    assert ages("train") == ages("test", "train") == [30]
    config.data.synthetic_weight = 0.5
    source = data.Examples(builder, "train", config, images=())
    assert source.weights() == [{30: 1.0, 50: 0.5}[source[i]["age"]] for i in range(len(source))]
    config.data.validation_subjects = 2
    assert ages("validation", "train") == [30] and ages("train", "train") == [30, 50]
    assert not any(r["synthetic"] for r in every_record(builder)["test"] if r["age"] == 30)
    with pytest.raises(InputError, match="holds synthetic faces alone; add 'test'"):
        for row in cohort.rows[:8]:
            row["synthetic"] = "yes"
        builder = build(cohort, tmp_path, split="column")
        ages("test", "train")
