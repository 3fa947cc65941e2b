"""Faces in photographs: found, refused, framed, and drawn on the page of `inspect`.

The photographs are scikit-image's: an astronaut who looks at the camera, a photographer in profile,
a cat, and a cup of coffee.
"""

import csv

import cv2
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors
from PIL import Image
from skimage import data as pictures

from configs import demo
from cranio_jax import data
from cranio_jax.errors import InputError
from cranio_jax.reporting import inspection
from data_builders.errors import UnreadableError
from data_builders.images import faces
from data_builders.images.squares import PLACES
from data_builders.skull_face import draft
from data_builders.skull_face.skull_face_dataset_builder import Builder, make_config
from tests.data_builders.test_skull_face import skull


@pytest.fixture
def detector(shared_data):
    return shared_data / "weights" / "yunet_n_dynamic.onnx"


def frontal():
    return pictures.astronaut()


def lateral():
    grey = cv2.resize(pictures.camera(), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    return np.repeat(grey[..., None], 3, -1)


def test_a_face_is_where_it_is_at_any_scale_and_place(detector):
    face = faces.only_face(frontal(), "frontal", detector)
    eye, other_eye, nose, *mouth = face.landmarks
    assert eye[0] < nose[0] < other_eye[0] and mouth[0][0] < mouth[1][0]
    assert max(eye[1], other_eye[1]) < nose[1] < min(mouth[0][1], mouth[1][1])
    # Where a person sees them.
    seen = [[203, 101], [247, 103], [224, 128], [206, 143], [241, 143]]
    assert np.abs(face.landmarks - seen).max() < 6

    def moved(photograph, scale=1.0, corner=(0, 0)):
        found = faces.only_face(photograph, "frontal", detector)
        return np.abs((found.landmarks - corner) / scale - face.landmarks).max() / face.width

    large = cv2.resize(frontal(), None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    assert moved(large, scale=6) < 0.1
    wall = np.full((2400, 3200, 3), 120, np.uint8)
    wall[1500:2012, 2000:2512] = frontal()
    assert moved(wall, corner=(2000, 1500)) < 0.1


def test_views(detector):
    (photographer,) = faces.find_faces(lateral(), detector)
    assert (photographer.view, photographer.looks_right) == ("lateral", True)
    (mirrored,) = faces.find_faces(np.ascontiguousarray(lateral()[:, ::-1]), detector)
    assert (mirrored.view, mirrored.looks_right) == ("lateral", False)
    assert faces.find_faces(frontal(), detector)[0].view == "frontal"


@pytest.mark.parametrize(
    ("photograph", "view", "words"),
    [
        (pictures.cat, "frontal", "no face was found in it"),
        (pictures.coffee, "lateral", "no face was found in it"),
        (lambda: frontal()[:1, :1], "frontal", "no face was found in it"),
        (lambda: np.hstack([frontal(), frontal()]), "frontal", "2 faces were found in it"),
        (lambda: cv2.resize(frontal(), (160, 160)), "frontal", "2. pixels wide, and 60 are needed"),
        (lateral, "frontal", "turned to the side, but face_view is frontal"),
        (frontal, "lateral", "looks at the camera, but face_view is lateral"),
        (lambda: np.ascontiguousarray(frontal()[::-1]), "frontal", "does not stand upright"),
        (lambda: np.ascontiguousarray(np.rot90(frontal())), "frontal", "does not stand upright"),
    ],
)
def test_photographs_that_are_refused(detector, photograph, view, words):
    with pytest.raises(UnreadableError, match=words):
        faces.only_face(photograph(), view, detector)


def test_people_in_the_background_do_not_count(detector):
    photograph = np.hstack([cv2.resize(frontal(), None, fx=4, fy=4), np.zeros((2048, 600, 3))])
    photograph[100:612, 2048:2560] = frontal()
    face = faces.only_face(photograph.astype(np.uint8), "frontal", detector)
    assert face.width > 300


@pytest.fixture
def archive(tmp_path, detector):
    """Two frontal people and a lateral one, with the list that names no landmark."""
    folder = tmp_path / "hospital"
    folder.mkdir()
    turned = cv2.warpAffine(
        frontal(), cv2.getRotationMatrix2D((224, 120), 15, 1.0), (512, 512), borderValue=(120,) * 3
    )
    photographs = {"ann": frontal(), "bob": turned, "eve": lateral()}
    rows = []
    for number, (name, photograph) in enumerate(photographs.items()):
        view = "lateral" if name == "eve" else "frontal"
        Image.fromarray(photograph).save(folder / f"{name}_photo.png")
        Image.fromarray(np.uint8(255 * skull(number))).save(folder / f"{name}_xray.png")
        rows.append([name, f"{name}_xray.png", view, f"{name}_photo.png", view, 40, "f"])
    with open(folder / "people.csv", "w", newline="") as file:
        csv.writer(file).writerows([["subject", *draft.NEEDED[1:]], *rows])
    return folder


def builder_of(archive, detector, **changes):
    settings = dict(manifest=str(archive / "people.csv"), size=128, text="keep", align=True)
    config = make_config(**settings, detector=str(detector), **changes)
    return Builder(config=config, data_dir=archive.parent / "records")


def test_faces_are_framed_without_landmarks_in_the_list(archive, detector):
    builder = builder_of(archive, detector, test_fraction=0.4)
    builder.download_and_prepare(file_format="array_record")
    records = [r for split in builder.info.splits for r in builder.as_data_source(split)]
    views = [record["face_view"].decode() for record in records]
    assert sorted(views) == ["frontal", "frontal", "lateral"]
    for record, view in zip(records, views, strict=True):
        if view == "lateral":
            assert np.isnan(record["face_landmarks"]).all()
            # The face fills half of the height, and looks out of the picture's middle.
            enlarged = cv2.resize(record["face"], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
            (face,) = faces.find_faces(enlarged, detector)
            left, top, right, bottom = face.box / enlarged.shape[0]
            assert 0.4 < bottom - top < 0.6 and 0.5 < (left + right) / 2 < 0.8
        else:
            # The landmarks are where the template has them, and what is there is a face.
            assert np.abs(record["face_landmarks"] / 128 - PLACES).max() < 0.05
            enlarged = cv2.resize(record["face"], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
            found = faces.only_face(enlarged, "frontal", detector)
            assert np.abs(found.landmarks / 384 - PLACES).max() < 0.05


def test_records_open_again_with_a_detector_in_a_folder(archive, detector):
    """Records tell the detector's name, not its path."""
    config = demo.get_config().data
    config.update(builder="skull_face", data_dir=str(archive.parent / "records"))
    config.skull_face.update(
        manifest=str(archive / "people.csv"),
        detector=str(detector),
        align=True,
        text="keep",
        test_fraction=0.4,
    )
    first, again = data.make_builder(config), data.make_builder(config)
    assert str(detector.parent) not in str(first.info.metadata)
    assert data.fingerprint(first) == data.fingerprint(again)


def test_landmarks_of_the_list_win(archive, detector):
    photograph = faces.only_face(frontal(), "frontal", detector)
    given = photograph.landmarks + [30.0, 0.0]
    names = [
        f"{n}_{axis}" for n in ("eye_1", "eye_2", "nose", "mouth_1", "mouth_2") for axis in "xy"
    ]
    rows = list(csv.reader(open(archive / "people.csv")))
    rows = [rows[0] + names, *[row + [""] * 10 for row in rows[1:]]]
    rows[1][-10:] = given.ravel()
    csv.writer(open(archive / "people.csv", "w", newline="")).writerows(rows)
    entries = {entry.where: entry for entry in builder_of(archive, detector).entries()}
    assert not entries["row 2"].found and len(entries["row 3"].found) == 4
    face = inspection.decoded(entries["row 2"].face())
    enlarged = cv2.resize(face, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    (found,) = faces.find_faces(enlarged, detector)
    assert found.landmarks[2, 0] / 384 < PLACES[2, 0] - 0.08  # the face is off to the left


def test_the_page_shows_what_was_found(archive, detector):
    def marked(entry):
        source = inspection._pairs([entry])
        return "framed by" in source, source.count("<img")

    entries = list(builder_of(archive, detector).entries())
    assert [marked(entry) for entry in entries] == [(True, 2)] * 3
    plain = entries[0]._replace(found=(), landmarks=())
    assert marked(plain) == (False, 2) and inspection._pairs([plain]) != inspection._pairs(entries)
    box = inspection._thumbnail(
        inspection.decoded(plain.face()), [entries[0].found], entries[0].landmarks
    )
    assert box in inspection._pairs(entries[:1])


def test_a_draft_has_the_views_of_faces(archive, detector, capsys):
    rows = {row["face"]: row for row in draft.draft(archive, str(detector))}
    views = [rows[f"{name}_photo.png"]["face_view"] for name in ("ann", "bob", "eve")]
    assert views == ["frontal", "frontal", "lateral"]
    assert "look at (3): photographs whose view is that of the face" in capsys.readouterr().err


def test_a_detector_that_is_missing_or_something_else(archive, detector, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="data.skull_face.detector=nothing.onnx: no such file"):
        builder_of(archive, "nothing.onnx").pairs()
    (tmp_path / "other.onnx").write_bytes(b"something else")
    with pytest.raises(InputError, match="detector=other.onnx: OpenCV can't run it as YuNet"):
        builder_of(archive, tmp_path / "other.onnx").pairs()

    # From the hub's cache, without a network; then from neither.
    asked = []

    def hub(name, file, local_files_only=False):
        asked.append((name, file, local_files_only))
        if cached and local_files_only:
            return str(detector)
        raise errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    cached = True
    assert len(builder_of(archive, faces.HUB_ID).pairs().usable) == 3
    assert asked == [(faces.HUB_ID, faces.HUB_FILE, True)]
    cached = False
    with pytest.raises(InputError, match="not in the hub's cache, and the hub can't be reached"):
        builder_of(archive, faces.HUB_ID).pairs()
