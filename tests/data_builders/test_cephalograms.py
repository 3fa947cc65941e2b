"""Cephalograms: landmarks keep their places, soft tissue is hidden, and bad lists are refused."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from configs import demo
from cranio_jax import data
from cranio_jax.errors import InputError
from cranio_jax.jobs.inspect import inspect
from data_builders.cephalograms import challenge, masking
from data_builders.cephalograms.cephalograms_dataset_builder import Builder, make_config
from data_builders.cephalograms.landmarks import BONE, LANDMARKS, SOFT

# Of a head that looks to the right, in pixels of a picture of 300 x 400.
PLACES = dict(
    sella=(120, 150), nasion=(200, 130), orbitale=(190, 165), porion=(90, 165),
    a_point=(205, 220), b_point=(198, 275), pogonion=(200, 300), menton=(188, 312),
    gnathion=(196, 309), gonion=(110, 260), lower_incisor=(206, 246), upper_incisor=(210, 245),
    upper_lip=(226, 238), lower_lip=(222, 256), subnasale=(222, 222), soft_pogonion=(216, 300),
    pns=(140, 205), ans=(210, 208), articulare=(95, 190),
)  # fmt: skip


def cephalogram(number=0):
    """A grey head with brighter bone; each landmark of bone is a bright spot."""
    y, x = np.mgrid[:400, :300]
    rng = np.random.default_rng(number)
    picture = np.full((400, 300), 10.0)
    picture[(x < 218) & (y > 60) & (y < 380)] = 90  # skin
    picture[(x < 200) & (y > 70) & (y < 312)] = 160  # bone
    for name in BONE:
        column, row = PLACES[name]
        picture[np.hypot(x - column, y - row) < 3] = 250
    return np.uint8(np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255))


def write_challenge(folder, people):
    """Writes pictures and landmarks as the challenge does, by two annotators."""
    for part in ("RawImage/TrainingData", "Annotations/400_senior", "Annotations/400_junior"):
        (folder / part).mkdir(parents=True)
    for number in range(1, people + 1):
        name = f"{number:03d}"
        picture = Image.fromarray(cephalogram(number))
        picture.save(folder / "RawImage/TrainingData" / f"{name}.bmp")
        for annotator, shift in (("senior", 1), ("junior", -1)):
            lines = [f"{PLACES[k][0] + shift},{PLACES[k][1] + number % 3}" for k in LANDMARKS]
            text = "\n".join([*lines, *"12345678"])  # classes follow
            (folder / f"Annotations/400_{annotator}" / f"{name}.txt").write_text(text)


def write_list(folder, people=2, **changes):
    """Writes X-rays and their list; returns its path. `changes` are values of the first row."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(people):
        Image.fromarray(cephalogram(number)).save(folder / f"x{number}.png")
        row = {"file": f"x{number}.png"}
        for name, (x, y) in PLACES.items():
            row |= {f"{name}_x": x, f"{name}_y": y}
        rows.append(row)
    rows[0] |= changes
    with open(folder / "list.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "list.csv"


def built(folder, **settings):
    config = make_config(manifest=str(folder / "list.csv"), size=200, text="keep", **settings)
    builder = Builder(config=config, data_dir=folder / "records")
    builder.download_and_prepare(file_format="array_record")
    return [record for record in builder.as_data_source("test")]


def test_landmarks_keep_their_places(tmp_path):
    write_list(tmp_path, sex="f", age=31, mm_per_pixel=0.2)
    records = built(tmp_path)
    assert [record["sex"] for record in records] == [b"female", b""]
    assert records[0]["age"] == 31 and np.isnan(records[1]["age"])
    # 400 pixels become 200.
    assert [float(r["mm_per_pixel"]) for r in records] == pytest.approx([0.4, 0.2])
    for record in records:
        assert b"x0" not in record["id"] and record["xray_view"] == b"lateral"
        for name, (x, y) in zip(LANDMARKS, record["xray_landmarks"], strict=True):
            column, row = PLACES[name]
            assert (x, y) == pytest.approx(((column + 50.5) / 2 - 0.5, (row + 0.5) / 2 - 0.5))
            if name in BONE:
                column, row = round(float(x)), round(float(y))
                here = record["xray"][row - 1 : row + 2, column - 1 : column + 2]
                assert here.max() > 225, name


def test_soft_tissue_is_hidden_and_bone_is_not(tmp_path):
    write_list(tmp_path)
    kept, masked = (built(tmp_path, soft_tissue=how)[0] for how in ("keep", "mask"))
    before, after = (record["xray"][..., 0].astype(int) for record in (kept, masked))
    places = dict(zip(LANDMARKS, kept["xray_landmarks"], strict=True))
    for name in SOFT:
        x, y = places[name]
        between = np.round([(x + places["a_point"][0]) / 2 + 4, y]).astype(int)
        assert after[between[1], between[0]] < 60, name
    for name in BONE:
        x, y = np.round(places[name]).astype(int)
        assert abs(after[y, x] - before[y, x]) < 40, name
    behind = np.s_[50:150, 30:120]
    np.testing.assert_array_equal(after[behind], before[behind])
    assert (after != before).mean() > 0.02


def test_heads_that_look_to_the_left_are_hidden_on_that_side():
    square = cephalogram()[:, ::-1]
    places = np.array([(299 - PLACES[name][0], PLACES[name][1]) for name in LANDMARKS], float)
    hidden = masking.without_soft_tissue(square, places, 0.5)
    mirrored = np.array([PLACES[name] for name in LANDMARKS], float)
    same = masking.without_soft_tissue(cephalogram(), mirrored, 0.5)
    assert np.abs(hidden[:, ::-1].astype(int) - same).mean() < 1


def test_the_challenge_becomes_a_list(tmp_path):
    write_challenge(tmp_path, people=3)
    rows = challenge.rows(tmp_path)
    assert [row["file"] for row in rows] == [f"RawImage/TrainingData/00{n}.bmp" for n in (1, 2, 3)]
    # The mean of both annotators.
    assert float(rows[0]["nasion_x"]) == 200 and float(rows[0]["nasion_y"]) == 131
    assert len(rows[0]) == 1 + 2 * 19


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: None, "holds no picture whose name is a number"),
        (lambda folder: (folder / "7.txt").write_text("1,2\n3,4"), "7.txt: expected `x,y` of 19"),
    ],
)
def test_folders_that_are_no_challenge(tmp_path, spoil, words):
    spoil(tmp_path)
    with pytest.raises(InputError, match=words):
        challenge.rows(tmp_path)


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        (dict(file="x9.png"), {}, "row 2: file='x9.png': no such file"),
        (dict(file="x1.png"), {}, "row 3: the same file as in row 2"),
        (dict(nasion_x="left"), {}, "row 2: nasion_x='left' is not a number of pixels"),
        (dict(nasion_x=""), {}, "row 2: nasion_y is given without the other of nasion_x"),
        (dict(mm_per_pixel=50), {}, "row 2: mm_per_pixel=50 is outside 0.01 to 2 mm"),
        (dict(nasion_x=350), {}, "row 2: nasion lies outside the X-ray of 300 x 400 pixels"),
        (dict(porion_x=210), {}, "row 2: the head looks to the left; mirror the X-ray"),
        (dict(age=450), {}, "row 2: age=450 is outside 0 to 120 years"),
        (
            dict(nasion_x="", nasion_y=""),
            dict(soft_tissue="mask"),
            "row 2: nasion_x is empty, and soft_tissue=mask needs it",
        ),
        ({}, dict(soft_tissue="melt"), "soft_tissue='melt' is not one of keep, mask"),
        ({}, dict(mm_per_pixel=0.0), "mm_per_pixel=0.0 is outside 0.01 to 2 mm"),
    ],
)
def test_lists_that_are_refused(tmp_path, changes, settings, words):
    write_list(tmp_path, **changes)
    config = demo.get_config().data
    config.update(builder="cephalograms", data_dir=str(tmp_path / "records"))
    config.cephalograms.update(manifest=str(tmp_path / "list.csv"), **settings)
    with pytest.raises(InputError, match=words):
        data.make_builder(config)


def test_a_list_without_landmarks(tmp_path):
    (tmp_path / "list.csv").write_text("file\nx0.png\n")
    with pytest.raises(InputError, match="names no landmark; its columns are such as sella_x"):
        built(tmp_path)


def test_inspect_draws_landmarks(tmp_path):
    write_list(tmp_path, people=2)
    config = demo.get_config()
    config.data.update(builder="cephalograms", data_dir=str(tmp_path / "records"))
    config.data.cephalograms.update(manifest=str(tmp_path / "list.csv"), text="keep")
    inspect(config, tmp_path / "look")
    page = (tmp_path / "look" / "inspect.html").read_text()
    assert "Dots in X-rays are landmarks" in page
    found = json.loads((tmp_path / "look" / "inspect.json").read_text())
    assert found["missing"] == {"sex": 2, "age": 2, "bmi_change": 2, "face": 2}
