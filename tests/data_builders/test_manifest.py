"""The user's list of X-rays and photographs: what is read, and what is refused with its row."""

import pyarrow
import pytest
from pyarrow import parquet

from cranio_jax.errors import InputError
from data_builders.lists.tables import tell
from data_builders.skull_face.manifest import LANDMARKS, read_manifest

HEADER = "subject,xray,xray_view,face,face_view,age,sex"
GOOD = "A,x/a.png,frontal,f/a.jpg,frontal,34,F"


@pytest.fixture
def manifest(tmp_path):
    """Writes a manifest beside files that exist, and reads it."""
    for name in ("x/a.png", "x/b.png", "f/a.jpg", "f/b.jpg", "f/c.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"picture")
    (tmp_path / "outside.png").write_bytes(b"picture")

    def write(*lines, header=HEADER, name="list.csv"):
        content = "\n".join([header, *lines]) + "\n"
        (tmp_path / "data" / name).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
        return read_manifest(tmp_path / "data" / name)

    return write


def test_a_good_row(manifest, tmp_path):
    more = ["bmi_change", "split", "xray_inverted", "hospital", *LANDMARKS, "synthetic"]
    header = ",".join(["Subject, XRAY ,xray_view,face,face_view,age,sex", *more])
    found = manifest(
        GOOD + ",-0.10,test,yes,General," + ",".join(map(str, range(10))) + ",yes", header=header
    )
    assert not found.problems and found.ignored == ["hospital"]
    (row,) = found.rows
    assert (
        row.number == 2
        and row.subject == "A"
        and row.xray.path == (tmp_path / "data/x/a.png").resolve()
    )
    assert (row.sex, row.split, row.xray.inverted) == ("female", "test", True)
    assert row.face.synthetic
    assert (row.face.age, row.face.bmi_change, row.face.landmarks) == (
        34.0,
        -10.0,
        tuple(range(10)),
    )


def test_a_byte_order_mark_blank_lines_and_quotes(manifest, tmp_path):
    manifest(GOOD)
    text = f'\ufeff{HEADER}\n\n"A","x/a.png",frontal,"f/a.jpg",Frontal,34.5,male\n\n'
    (tmp_path / "data" / "bom.csv").write_text(text, encoding="utf-8")
    (row,) = read_manifest(tmp_path / "data" / "bom.csv").rows
    assert row.number == 3 and row.face.age == 34.5 and row.sex == "male"


def test_body_mass_is_turned_into_a_change(manifest):
    lines = [
        f"A,x/a.png,frontal,f/{n}.jpg,frontal,40,m,{mass}"
        for n, mass in (("a", 20), ("b", 25), ("c", 30))
    ]
    found = manifest(*lines, header=HEADER + ",bmi")
    assert [round(row.face.bmi_change, 6) for row in found.rows] == [-20.0, 0.0, 20.0]


def test_a_body_mass_too_far_from_the_others_is_a_bad_row(manifest):
    """It would be refused in training, without a word on the row."""
    lines = [
        f"A,x/a.png,frontal,f/{n}.jpg,frontal,40,m,{mass}" for n, mass in (("a", 25), ("b", 65))
    ]
    found = manifest(*lines, header=HEADER + ",bmi")
    assert found.problems == [
        (2, "bmi differs by -62 % from the subject's upper median, which is outside -60 to 200")
    ]


WRONG = [
    ("A,x/none.png,frontal,f/a.jpg,frontal,34,F", "xray='x/none.png': no such file"),
    (
        "A,../outside.png,frontal,f/a.jpg,frontal,34,F",
        "xray='../outside.png' lies outside the data's folder",
    ),
    (
        "A,x/a.png,oblique,f/a.jpg,frontal,34,F",
        "xray_view='oblique' is not one of frontal, lateral",
    ),
    ("A,x/a.png,frontal,f/a.jpg,frontal,450,F", "age=450 is outside 0 to 120 years"),
    (
        "A,x/a.png,frontal,f/a.jpg,frontal,1971-03-12,F",
        "age='1971-03-12' is a date; expected years",
    ),
    ("A,x/a.png,frontal,f/a.jpg,frontal,12/03/71,F", "is a date"),
    ("A,x/a.png,frontal,f/a.jpg,frontal,old,F", "age='old' is not a number of years"),
    ("A,x/a.png,frontal,f/a.jpg,frontal,nan,F", "age is empty"),
    ("A,x/a.png,frontal,f/a.jpg,frontal,34,x", "sex='x' is not one of f, female, m, male"),
    (",x/a.png,frontal,f/a.jpg,frontal,34,F", "subject is empty"),
    ("A,x/a.png,frontal", "face is empty"),
]


@pytest.mark.parametrize(("line", "words"), WRONG)
def test_a_wrong_row_is_told_and_the_others_stay(manifest, line, words):
    found = manifest("B,x/b.png,lateral,f/b.jpg,lateral,50,m", line)
    assert [row.subject for row in found.rows] == ["B"]
    ((number, said),) = found.problems
    assert number == 3 and words in said


def test_wrong_numbers_beside_the_needed_ones(manifest):
    found = manifest(GOOD + ",10", header=HEADER + ",bmi_change")
    assert "bmi_change=10 is outside -0.6 to 2 (a fraction" in found.problems[0][1]
    found = manifest(GOOD + ",3", header=HEADER + ",bmi")
    assert "bmi=3 is outside 8 to 120 kg/m2" in found.problems[0][1]
    found = manifest(GOOD + ",5,", header=HEADER + ",eye_1_x,eye_1_y")
    assert "eye_1_y is empty and other landmarks are not" in found.problems[0][1]
    found = manifest(GOOD + ",validate", header=HEADER + ",split")
    assert "split='validate' is not one of train, validation, test" in found.problems[0][1]


def test_rows_that_contradict_each_other(manifest):
    found = manifest(
        GOOD,
        GOOD,
        "A,x/a.png,frontal,f/b.jpg,frontal,34,m",
        "B,x/a.png,frontal,f/c.jpg,frontal,34,m",
        "A,x/a.png,lateral,f/c.jpg,frontal,34,f",
    )
    told = dict(found.problems)
    assert told[3] == "the same X-ray and face as in row 2"
    assert told[4] == "the subject is male here and female in row 2"
    assert "its X-ray is another subject's in row 2" in [
        words for number, words in found.problems if number == 5
    ]
    assert "its X-ray has another view in row 2" in [
        words for number, words in found.problems if number == 6
    ]
    assert [row.number for row in found.rows] == [2]
    found = manifest(GOOD, "A,x/b.png,frontal,f/a.jpg,frontal,35,F")
    assert found.problems == [(3, "its face has another age in row 2")]
    found = manifest(
        GOOD + ",train", "A,x/b.png,lateral,f/b.jpg,lateral,34,F,test", header=HEADER + ",split"
    )
    assert "the subject's split is 'test' here and 'train' in row 2" in found.problems[0][1]


def test_many_problems_are_told_together(manifest):
    found = manifest(*(f"A{i},x/none.png,frontal,f/a.jpg,frontal,34,F" for i in range(60)))
    words = tell(found.problems, "list.csv").splitlines()
    assert words[0] == "60 rows of list.csv can't be used:" and words[1].startswith(
        "list.csv, row 2: xray="
    )
    assert len(words) == 52 and words[-1] == "... and 10 more"


def test_files_that_are_no_manifest(manifest, tmp_path):
    with pytest.raises(InputError, match="list.csv holds no row below its header"):
        manifest()
    with pytest.raises(InputError, match="list.csv lacks the column 'sex'"):
        manifest("A,x", header="subject,xray,xray_view,face,face_view,age")
    with pytest.raises(InputError, match="both bmi and bmi_change"):
        manifest(GOOD, header=HEADER + ",bmi,bmi_change")
    with pytest.raises(InputError, match="nowhere.csv: No such file"):
        read_manifest(tmp_path / "nowhere.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="empty.csv is empty"):
        read_manifest(tmp_path / "empty.csv")
    (tmp_path / "latin.csv").write_bytes(f"{HEADER}\n{GOOD}\nM\xfcller,x\n".encode("latin-1"))
    with pytest.raises(InputError, match="latin.csv, row 3: not UTF-8; save the file as UTF-8"):
        read_manifest(tmp_path / "latin.csv")


def test_parquet(manifest, tmp_path):
    values = dict(zip(HEADER.split(","), GOOD.split(","), strict=True)) | {"age": 34.0}
    manifest(GOOD)
    parquet.write_table(pyarrow.Table.from_pylist([values]), tmp_path / "data" / "list.parquet")
    (row,) = read_manifest(tmp_path / "data" / "list.parquet").rows
    assert row.subject == "A" and row.face.age == 34.0
    (tmp_path / "data" / "list.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_manifest(tmp_path / "data" / "list.parquet")
