"""A first manifest from a folder of files."""

import numpy as np
import pytest
from PIL import Image

from cranio_jax.errors import InputError
from data_builders.skull_face import draft
from tests.data_builders.test_skull_face import skull, write_dicom


def photograph(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3)).astype(np.uint8)).resize((80, 90)).save(path)


def test_a_folder_a_subject(tmp_path, capsys):
    (tmp_path / "ann").mkdir()
    header = dict(PatientSex="F", PatientAge="045Y", ViewPosition="PA", PatientID="17")
    write_dicom(tmp_path / "ann" / "1.dcm", skull(0), "Ann", **header)
    Image.fromarray(np.uint8(255 * skull(1))).save(tmp_path / "ann" / "side.png")
    photograph(tmp_path / "ann" / "front_25y.jpg")
    photograph(tmp_path / "ann" / "profile-aged-67.jpg")
    (tmp_path / "ann" / "notes.txt").write_text("no picture")
    draft.main(str(tmp_path))
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "subject,xray,xray_view,face,face_view,age,sex",
        "ann,ann/1.dcm,frontal,ann/front_25y.jpg,frontal,25,f",
        "ann,ann/side.png,lateral,ann/profile-aged-67.jpg,lateral,67,f",
    ]
    assert "2 rows of 1 subjects; to be filled in: nothing" in err


def test_a_number_that_counts_pictures_is_no_age(tmp_path, capsys):
    (tmp_path / "ann").mkdir()
    write_dicom(tmp_path / "ann" / "pa.dcm", skull(0), "Ann", PatientAge="045Y")
    photograph(tmp_path / "ann" / "front-2.jpg")
    draft.main(str(tmp_path))
    assert capsys.readouterr().out.splitlines()[1] == "ann,ann/pa.dcm,frontal,ann/front-2.jpg,frontal,45,"


def test_files_side_by_side(tmp_path, capsys):
    write_dicom(tmp_path / "x.dcm", skull(0), "Ann", PatientID="17")
    Image.fromarray(np.uint8(255 * skull(1))).save(tmp_path / "18_ss.png")
    photograph(tmp_path / "18-photo.jpg")
    draft.main(str(tmp_path))
    out, err = capsys.readouterr()
    assert out.splitlines()[1:] == ["18,18_ss.png,lateral,18-photo.jpg,,,", "17,x.dcm,,,,,"]
    assert "to be filled in: face_view in 2, age in 2, sex in 2, xray_view in 1, face in 1" in err
    for folder, words in ((tmp_path / "none", "is not a folder"), (tmp_path / "empty", "holds no picture")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=words):
            draft.main(str(folder))
