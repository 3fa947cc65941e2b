"""A first manifest from a folder of files."""

import os
import pathlib
import warnings

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image

from cranio_jax.errors import InputError
from data_builders.skull_face import draft
from data_builders.skull_face.manifest import read_manifest
from tests.data_builders.test_skull_face import skull, write_dicom


def photograph(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3)).astype(np.uint8)).resize(
        (80, 90)
    ).save(path)


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
    assert (
        capsys.readouterr().out.splitlines()[1]
        == "ann,ann/pa.dcm,frontal,ann/front-2.jpg,frontal,45,"
    )


def test_files_side_by_side(tmp_path, capsys):
    write_dicom(tmp_path / "x.dcm", skull(0), "Ann", PatientID="17")
    Image.fromarray(np.uint8(255 * skull(1))).save(tmp_path / "18_ss.png")
    photograph(tmp_path / "18-photo.jpg")
    draft.main(str(tmp_path))
    out, err = capsys.readouterr()
    assert out.splitlines()[1:] == ["18,18_ss.png,lateral,18-photo.jpg,,,", "17,x.dcm,,,,,"]
    assert "to be filled in: face_view in 2, age in 2, sex in 2, xray_view in 1, face in 1" in err
    for folder, words in (
        (tmp_path / "none", "is not a folder"),
        (tmp_path / "empty", "holds no picture"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=words):
            draft.main(str(folder))


# People.


def xray(path, **header):
    """Writes a DICOM file of 80 x 64 pixels without any field that tells whose it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom(path, skull(0, 80, 64), "Synthetic^Nobody", **({"PatientID": ""} | header))


def people(folder):
    """Returns the names of each subject's files."""
    groups = {}
    for row in draft.draft(folder):
        files = groups.setdefault(row["subject"], set())
        files |= {pathlib.PurePath(row[name]).name for name in ("xray", "face")} - {""}
    return groups


def test_a_disc_of_two_patients(tmp_path, capsys):
    for i, (patient, sex) in enumerate((("P1", "F"), ("P2", "M"))):
        folder = tmp_path / f"DICOM/PAT{i}/STU0"
        for view in ("PA", "LL"):
            xray(folder / f"SE{view}/IM{i}", PatientID=patient, PatientSex=sex, ViewPosition=view)
        photograph(folder / f"front{i}.jpg")
    for name in ("AUTORUN.INF", "README.TXT", "VIEWER.EXE"):
        (tmp_path / name).write_bytes(b"MZ")
    assert people(tmp_path) == {"P1": {"IM0", "front0.jpg"}, "P2": {"IM1", "front1.jpg"}}
    assert (
        "left out (3): not pictures: AUTORUN.INF, README.TXT, VIEWER.EXE" in capsys.readouterr().err
    )


def test_two_patients_in_one_folder(tmp_path, capsys):
    for patient in ("P1", "P2"):
        xray(tmp_path / f"visit/{patient}.dcm", PatientID=patient, PatientSex="F")
    photograph(tmp_path / "visit/IMG_1.jpg")
    photograph(tmp_path / "visit/p2_front.jpg")
    groups = people(tmp_path)
    assert groups == {"P1": {"P1.dcm"}, "P2": {"P2.dcm", "p2_front.jpg"}, "": {"IMG_1.jpg"}}
    assert "may be of several people; fill in whose they are: visit/IMG_1.jpg" in (
        capsys.readouterr().err
    )


def test_one_subject_with_the_ids_of_two_hospitals(tmp_path, capsys):
    for patient in ("A17", "77-3"):
        xray(tmp_path / f"ann/{patient}.dcm", PatientID=patient, PatientBirthDate="19710312")
    photograph(tmp_path / "ann/front.jpg")
    assert people(tmp_path) == {"ann": {"A17.dcm", "77-3.dcm", "front.jpg"}}
    assert "folders with several patient IDs, treated as one subject" in capsys.readouterr().err
    # What anonymizers write in place of a date confirms nothing.
    for patient in ("A17", "77-3"):
        xray(tmp_path / f"ann/{patient}.dcm", PatientID=patient, PatientBirthDate="19000101")
    assert set(people(tmp_path)) == {"A17", "77-3", ""}


def test_one_patient_in_two_folders(tmp_path):
    for folder, patient in (("2019", "P1"), ("2021", "P1"), ("bob", "P2")):
        xray(tmp_path / f"{folder}/x.dcm", PatientID=patient)
        photograph(tmp_path / f"{folder}/{folder}.jpg")
    assert people(tmp_path) == {
        "P1": {"x.dcm", "2019.jpg", "2021.jpg"},
        "bob": {"x.dcm", "bob.jpg"},
    }


@pytest.mark.parametrize("patient", ["ANON", "Anonymous", "0", "", "SITE-1", "anonymized"])
def test_an_id_that_all_share(tmp_path, capsys, patient):
    for name, sex in (("ann", "F"), ("bob", "M"), ("cid", "M")):
        for folder in ("flat", "folders"):
            where = tmp_path / folder / ("" if folder == "flat" else name)
            xray(where / f"{name}-x.dcm", PatientID=patient, PatientSex=sex)
            photograph(where / f"{name}-front.jpg")
    expected = {name: {f"{name}-x.dcm", f"{name}-front.jpg"} for name in ("ann", "bob", "cid")}
    assert people(tmp_path / "flat") == expected
    assert people(tmp_path / "folders") == expected
    told = "an ID that is no patient's or is shared" in capsys.readouterr().err
    assert told == bool(patient)
    # All in one more folder: the headers contradict each other.
    groups = people(tmp_path)
    assert {name.rpartition("/")[2]: files for name, files in groups.items()} == expected


def test_an_id_without_any_other_field(tmp_path):
    """One ID on everything tells nobody apart, unless the date of birth confirms it."""
    for name in ("ann", "bob"):
        xray(tmp_path / name / "x.dcm", PatientID="SITE")
    assert set(people(tmp_path)) == {"ann", "bob"}
    for name in ("ann", "bob"):
        xray(tmp_path / name / "x.dcm", PatientID="SITE", PatientBirthDate="19710312")
    assert set(people(tmp_path)) == {"SITE"}
    # A third patient makes it an ID like others, but two dates of birth do not.
    xray(tmp_path / "cid/x.dcm", PatientID="P3")
    xray(tmp_path / "bob/x.dcm", PatientID="SITE", PatientBirthDate="19800101")
    assert set(people(tmp_path)) == {"ann", "bob", "cid"}


def test_folders_that_tell_the_kind(tmp_path):
    for name in ("ann", "bob"):
        xray(tmp_path / f"xrays/{name}.dcm")
        photograph(tmp_path / f"photos/{name}.jpg")
        photograph(tmp_path / f"photos/lateral/{name}_2.jpg")
    groups = people(tmp_path)
    assert groups["ann"] == {"ann.dcm", "ann.jpg", "ann_2.jpg"} and set(groups) == {"ann", "bob"}


def test_names_that_cameras_give_are_nobodys(tmp_path):
    for i in range(2):
        xray(tmp_path / f"IMG_{i}.dcm", PatientID=f"P{i}")
        photograph(tmp_path / f"DSC_{i}.jpg")
    assert people(tmp_path)[""] == {"DSC_0.jpg", "DSC_1.jpg"}
    (tmp_path / "IMG_1.dcm").unlink()
    assert people(tmp_path) == {"P0": {"IMG_0.dcm", "DSC_0.jpg", "DSC_1.jpg"}}


# Views and ages.


def header_of(tmp_path, name="x.dcm", **header):
    """Returns the row that a DICOM file gets."""
    code = pydicom.Dataset()
    code.CodeValue, code.CodeMeaning = header.pop("code", ("", ""))
    if code.CodeMeaning:
        header["ViewCodeSequence"] = [code]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xray(tmp_path / "ann" / name, **header)
    (row,) = draft.draft(tmp_path)
    return row


VIEWS = [
    ({"ViewPosition": "AP"}, "frontal"),
    ({"ViewPosition": "lateral"}, "lateral"),
    ({"ViewPosition": "RL"}, "lateral"),
    ({"ViewPosition": "RLO"}, ""),
    ({"ViewPosition": "L"}, ""),
    ({"PatientOrientation": ["P", "F"]}, "lateral"),
    ({"PatientOrientation": ["A", "F"]}, "lateral"),
    ({"PatientOrientation": ["L", "F"]}, "frontal"),
    ({"PatientOrientation": ["L", "P"]}, ""),
    ({"SeriesDescription": "SKULL LAT"}, "lateral"),
    ({"SeriesDescription": "Schaedel seitlich"}, "lateral"),
    ({"StudyDescription": "FACE PROFILE"}, "lateral"),
    ({"ProtocolName": "cr\u00e2ne profil", "SpecificCharacterSet": "ISO_IR 192"}, "lateral"),
    ({"ProtocolName": "cr\u00e2ne face", "SpecificCharacterSet": "ISO_IR 192"}, "frontal"),
    ({"SeriesDescription": "teleradiografia latero-laterale"}, "lateral"),
    ({"SeriesDescription": "Skull P.A."}, "frontal"),
    ({"SeriesDescription": "skull ap/lat"}, ""),
    ({"BodyPartExamined": "FACE"}, ""),
    ({"StudyDescription": "Skull PA and lateral", "ViewPosition": "LL"}, "lateral"),
    ({"code": ("R-10236", "left lateral")}, "lateral"),
    ({"code": ("x", "postero-anterior oblique")}, ""),
    ({"name": "lat.dcm"}, "lateral"),
    ({"ViewPosition": "PA", "SeriesDescription": "Skull Towne"}, ""),
    ({"ViewPosition": "PA", "SeriesDescription": "Skull lateral"}, ""),
    ({"ViewPosition": "PA", "name": "ann-lat.dcm"}, ""),
]


@pytest.mark.parametrize(("header", "view"), VIEWS)
def test_views(tmp_path, capsys, header, view):
    assert header_of(tmp_path, **dict(header))["xray_view"] == view
    contradiction = len(header) == 2 and not view
    assert ("contradict each other about the view" in capsys.readouterr().err) == contradiction


BORN = {"PatientBirthDate": "19710312", "StudyDate": "20160311"}
AGES = [
    ({"PatientAge": "045Y"}, "45"),
    ({"PatientAge": "45y "}, "45"),
    ({"PatientAge": "45"}, "45"),
    ({"PatientAge": "018M"}, "1"),
    ({"PatientAge": "006W"}, "0"),
    ({"PatientAge": "3D"}, "0"),
    ({"PatientAge": "000Y"}, ""),
    ({"PatientAge": "old"}, ""),
    (BORN, "44"),
    (BORN | {"AcquisitionDate": "20160312"}, "45"),
    (BORN | {"PatientAge": "045Y"}, "45"),
    (BORN | {"PatientAge": "030Y"}, ""),
    (BORN | {"PatientBirthDate": "18000101"}, ""),
    (BORN | {"PatientAge": "030Y", "name": "aged-67.dcm"}, "67"),
]


@pytest.mark.parametrize(("header", "age"), AGES)
def test_ages(tmp_path, header, age):
    assert header_of(tmp_path, **header)["age"] == age


# What is left out, and what is not.


def test_what_is_left_out_is_named(tmp_path, capsys):
    ann = tmp_path / "ann"
    xray(ann / "ct.dcm", Modality="CT")
    xray(ann / "chest.dcm", BodyPartExamined="CHEST")
    xray(ann / "cine.dcm", NumberOfFrames=20)
    xray(ann / "photo.dcm", Modality="XC")
    xray(ann / "cut.dcm")
    (ann / "cut.dcm").write_bytes((ann / "cut.dcm").read_bytes()[:-9000])
    xray(ann / "._x.dcm")
    report = pydicom.dcmread(ann / "ct.dcm")
    del report.PixelData
    report.Modality = "SR"
    report.save_as(ann / "report.dcm")
    (ann / "empty.dcm").touch()
    (ann / "page.dcm").write_bytes(b"<html>404 not found</html>")
    (ann / "noise.dcm").write_bytes(np.random.default_rng(0).bytes(5000))
    (ann / "IMG_1.HEIC").write_bytes(b"\0\0\0\x24ftypheic" + bytes(100))
    (ann / "film.mp4").write_bytes(b"\0\0\0\x24ftypisom" + bytes(100))
    (ann / "IMG_1.NEF").write_bytes(b"II*\0" + bytes(100))
    (ann / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    (ann / "scan.nii.gz").write_bytes(b"\x1f\x8b\x08")
    (ann / "Thumbs.db").write_bytes(b"junk")
    (ann / "notes.txt").write_text("Ann")
    Image.new("RGB", (48, 40), "red").save(ann / "icon.png")
    Image.new("RGB", (80, 90)).save(
        ann / "two.gif", save_all=True, append_images=[Image.new("RGB", (80, 90), "red")]
    )
    photograph(ann / "front.jpg")
    os.symlink(ann / "front.jpg", ann / "link.jpg")
    os.symlink(tmp_path, ann / "loop")
    os.rename(bytes(ann / "notes.txt"), bytes(ann) + b"/m\xfcller.txt")
    assert people(tmp_path) == {"ann": {"front.jpg"}}
    lines = capsys.readouterr().err
    for words in (
        "which are not X-rays; the builder ct_heads makes X-rays from CT: ann/ct.dcm",
        (
            "X-rays of another part of the body, by their header; add them by hand if it is wrong:"
            " ann/chest.dcm"
        ),
        "films of several frames; save the right one: ann/cine.dcm",
        "photographs in DICOM; save them as JPEG or PNG: ann/photo.dcm",
        "without a picture: ann/report.dcm",
        "empty files: ann/empty.dcm",
        ": ann/page.dcm",
        "convert them to JPEG or PNG: ann/IMG_1.HEIC",
        "videos: ann/film.mp4",
        "raw files of a camera; convert them to JPEG or PNG: ann/IMG_1.NEF",
        "damaged pictures: ann/cut.jpg",
        "the builder ct_heads makes X-rays from CT: ann/scan.nii.gz",
        "thumbnails: ann/icon.png",
        "files of several pictures; save the right one: ann/two.gif",
        "twice: ann/link.jpg",
        "links to folders, which are not followed: loop",
        r"rename them: ann/m\xfcller.txt",
    ):
        assert words in lines
    assert "cut.dcm" in lines and "noise.dcm" in lines
    assert "Thumbs" not in lines and "._x" not in lines and "Nobody" not in lines


def test_a_damaged_field_costs_that_field(tmp_path):
    xray(tmp_path / "ann/x.dcm", PatientSex="F", PatientAge="045Y")
    content = (tmp_path / "ann/x.dcm").read_bytes()
    place = content.index(b"\x10\x00\x40\x00CS") + 4
    (tmp_path / "ann/x.dcm").write_bytes(content[:place] + b"Cs" + content[place + 2 :])
    (row,) = draft.draft(tmp_path)
    assert (row["xray"], row["sex"], row["age"]) == ("ann/x.dcm", "", "45")


def test_kinds_of_pictures(tmp_path, capsys):
    """Photographs in rare forms are photographs, and films in colour X-rays."""
    ann, film = tmp_path / "ann", skull(0, 120, 96)
    photograph(ann / "front.png")
    picture = Image.open(ann / "front.png")
    picture.save(ann / "mpo.jpg", format="MPO", save_all=True, append_images=[picture])
    picture.convert("RGBA").save(ann / "alpha.png")
    picture.convert("CMYK").save(ann / "cmyk.jpg")
    picture.convert("L").save(ann / "old_photo.jpg")
    blue = np.uint8(film[..., None] * (200, 220, 255))
    Image.fromarray(blue).save(ann / "blue.jpg")
    Image.fromarray(np.uint16(film * 60000)).save(ann / "16.png")
    Image.fromarray(np.uint8(film * 255)).convert("RGB").save(ann / "grey.jpg")
    Image.fromarray(blue[..., ::-1]).save(ann / "sepia.jpg")
    tifffile.imwrite(ann / "float.tif", np.float32(film))
    rows = draft.draft(tmp_path)
    faces = {"front.png", "mpo.jpg", "alpha.png", "cmyk.jpg", "old_photo.jpg", "sepia.jpg"}
    assert {row["face"] for row in rows} == {f"ann/{name}" for name in faces}
    assert {row["xray"] for row in rows} == {
        f"ann/{name}" for name in ("blue.jpg", "16.png", "grey.jpg", "float.tif")
    }
    told = capsys.readouterr().err
    assert "treated as photographs by name or camera; check them: ann/old_photo.jpg" in told
    assert "treated as X-rays; save them in grey: ann/blue.jpg" in told
    assert "of one hue treated as photographs; check them: ann/sepia.jpg" in told
    assert "if some are photographs, correct the list: ann/16.png" in told


def test_what_is_drafted_can_be_read(tmp_path, capsys):
    """File names of all kinds, and X-rays of other ages, make a list without a problem."""
    for i, name in enumerate(("M\u00fcller, Ann", "O'Neil [2]", "back\\slash", 'quote"d', "007")):
        for age in ("040Y", "050Y"):
            path = tmp_path / name / f"x;{age}, (1).dcm"
            header = dict(PatientAge=age, PatientSex="F", ViewPosition="LL", PatientID=f"P{i}")
            xray(path, **header)
        photograph(tmp_path / name / "side_30y.jpg")
        photograph(tmp_path / name / "side.jpg")
    draft.main(str(tmp_path))
    (tmp_path / "people.csv").write_text(capsys.readouterr().out)
    manifest = read_manifest(tmp_path / "people.csv")
    assert {row.subject for row in manifest.rows} == {
        p.name for p in tmp_path.iterdir() if p.is_dir()
    }
    assert len(manifest.rows) == 10
    # Which age the other photograph shows, nobody knows.
    assert {words for _, words in manifest.problems} == {"age is empty"}


def test_pictures_without_a_partner_are_named(tmp_path, capsys):
    xray(tmp_path / "ann/lat.dcm")
    xray(tmp_path / "ann/pa.dcm")
    photograph(tmp_path / "ann/front.jpg")
    (row,) = draft.draft(tmp_path)
    assert row["xray"] == "ann/pa.dcm"
    assert "without a partner of the same view: ann/lat.dcm" in capsys.readouterr().err


def test_damaged_headers_end_nothing(tmp_path):
    """Bytes exchanged all over a header: a row or a line on stderr, and the other files count."""
    draw = np.random.default_rng(0)
    xray(tmp_path / "ann/x.dcm", PatientSex="F", PatientAge="045Y", ViewPosition="PA")
    content = (tmp_path / "ann/x.dcm").read_bytes()
    photograph(tmp_path / "ann/front.jpg")
    for _ in range(60):
        mutated = bytearray(content)
        for place in draw.integers(0, len(content) - 10240, 3):
            mutated[place] = draw.integers(256)
        (tmp_path / "ann/x.dcm").write_bytes(mutated)
        assert "ann/front.jpg" in [row["face"] for row in draft.draft(tmp_path)]
