"""Lists from spreadsheets of all countries: read right, or refused with the row."""

import codecs
import datetime
import io
import os
import random
import unicodedata
import zipfile

import openpyxl
import pyarrow
import pytest
from pyarrow import parquet

from cranio_jax.errors import InputError
from data_builders.lists import splits
from data_builders.lists.tables import Problem, Values, file_of, number_of, path_of, read_table
from data_builders.skull_face.manifest import LANDMARKS, read_manifest

NAMES = ["subject", "xray", "xray_view", "face", "face_view", "age", "sex"]
HEADER = ",".join(NAMES)
ROWS = [f"{n.upper()},x/{n}.png,frontal,f/{n}.jpg,frontal,34,F" for n in "abc"]


@pytest.fixture
def people(tmp_path):
    """Writes a list beside pictures of three people, and reads it."""
    for name in ("x/a.png", "x/b.png", "x/c.png", "f/a.jpg", "f/b.jpg", "f/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"picture")

    def read(*lines, name="list.csv", content=None):
        (tmp_path / name).write_bytes(content or "\n".join(lines).encode())
        return read_manifest(tmp_path / name)

    read.folder = tmp_path
    return read


def subjects(manifest):
    return [row.subject for row in manifest.rows]


def numbers(manifest):
    return sorted({number for number, _ in manifest.problems})


# CSV.


def test_a_quote_that_never_closes_costs_its_own_row(people):
    header = HEADER + ",remarks"
    manifest = people(header, ROWS[0] + ',"tall', ROWS[1] + ",", ROWS[2] + ",")
    assert subjects(manifest) == ["B", "C"] and numbers(manifest) == [2]
    assert "a quote opens here and is not closed" in manifest.problems[0][1]
    # The next quote closes it, and swallows a person without any error of CSV.
    manifest = people(header, ROWS[0] + ',"tall', ROWS[1] + ",x", ROWS[2] + ',"')
    assert subjects(manifest) == ["B"] and numbers(manifest) == [2, 4]
    manifest = people(header, ROWS[0] + ',"tall" man', ROWS[1] + ",")
    assert subjects(manifest) == ["B"] and "text follows a closing quote" in manifest.problems[0][1]
    with pytest.raises(InputError, match="row 1: a quote opens here"):
        people(HEADER + ',"remarks', *ROWS)


def test_quotes_that_are_right(people):
    remark = '"tall, says\nthe ""doctor"",\r\nwho knows, perhaps, and so, on, and on, and on, on"'
    manifest = people(HEADER + ",remarks", f"{ROWS[0]},{remark}", ROWS[1] + ',5" scar', "", ROWS[2])
    assert subjects(manifest) == ["A", "B", "C"] and not manifest.problems
    # Rows are counted as a spreadsheet shows them.
    assert [row.number for row in manifest.rows] == [2, 3, 5]


@pytest.mark.parametrize("sign", "\u2028 \u2029 \x0b \x0c \x1c \x85".split(" "))
def test_signs_that_end_no_row(people, sign):
    manifest = people(HEADER + ",remarks", f"{ROWS[0]},one{sign}two", ROWS[1] + ",")
    assert subjects(manifest) == ["A", "B"] and not manifest.problems
    content = "\r".join([HEADER, *ROWS]).encode()
    assert subjects(people(content=content)) == ["A", "B", "C"]


def test_a_row_longer_than_its_header(people):
    manifest = people(HEADER + ",bmi", ROWS[0] + ",21,9", ROWS[1] + ",21.9", ROWS[2])
    assert subjects(manifest) == ["B", "C"] and numbers(manifest) == [2]
    assert "or write decimal points" in manifest.problems[0][1]
    # The header ends in a separator, as spreadsheets write it where notes stand beside the table.
    manifest = people(HEADER + ",bmi,", ROWS[0] + ",21,9", ROWS[1] + ",21.9,")
    assert subjects(manifest) == ["B"] and numbers(manifest) == [2]
    manifest = people("," + HEADER, *(f"{i},{row}" for i, row in enumerate(ROWS)))
    assert subjects(manifest) == ["A", "B", "C"]


@pytest.mark.parametrize("separator", ";\t|")
@pytest.mark.parametrize("stated", [False, True])
def test_separators(people, separator, stated):
    lines = [HEADER + ",bmi", ROWS[0] + ",21*9", '"B, junior"' + ROWS[1][1:] + ",22"]
    lines = [line.replace(",", separator).replace("*", ",") for line in lines]
    lines[2] = lines[2].replace(f"B{separator} junior", "B, junior")
    manifest = people(*([f"sep={separator}"] if stated else []), *lines)
    assert subjects(manifest) == ["A", "B, junior"] and manifest.rows[0].number == 2
    manifest = people(*([f"sep={separator}"] if stated else []), lines[0], lines[1] + separator)
    assert numbers(manifest) == [2]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_byte_order_marks(people, encoding):
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    text = "\r\n".join([HEADER, ROWS[0].replace("A,", "Müller,")]).replace(",", "\t")
    content = marks.get(encoding, b"") + text.encode(encoding)
    assert subjects(people(content=content)) == ["Müller"]
    with pytest.raises(InputError, match="list.csv starts like UTF-16 but is not"):
        people(content=codecs.BOM_UTF16_LE + text.encode("utf-16-le")[:-1] + b"\xd8")


def test_other_encodings_are_refused_with_the_row(people):
    lines = [HEADER + ",r", ROWS[0] + ',"a\nb"', "Müller" + ROWS[1][1:] + ","]
    with pytest.raises(InputError, match="row 3: not UTF-8; save the file as UTF-8"):
        people(content="\n".join(lines).encode("cp1252"))
    with pytest.raises(InputError, match="row 2: holds NUL bytes"):
        people(HEADER, ROWS[0] + "\0")
    for content, words in (
        (b"%PDF-1.7", "is a PDF"),
        (b"<html><table>", "is a web page"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Excel file .* or one with a password"),
        (b"\x1f\x8b\x08", "a compressed file"),
    ):
        with pytest.raises(InputError, match=words):
            people(content=content)
    with pytest.raises(InputError, match="is a folder"):
        read_manifest(people.folder)


# Names and values.


def test_names_with_one_reading(people, capsys):
    header = "Patient ID,X-Ray,X Ray View,photo_path,view,Age (years),Gender,Eye 1 X"
    manifest = people(header, ROWS[0] + ",")
    assert subjects(manifest) == ["A"] and not manifest.ignored
    error = capsys.readouterr().err
    assert "'patient id' as subject" in error and "'view' as face_view" in error
    read_manifest(people.folder / "list.csv")
    assert not capsys.readouterr().err  # once
    people("Subject," + HEADER[8:], *ROWS)
    assert not capsys.readouterr().err
    manifest = people(HEADER + ",patient_id,Hospital", ROWS[0] + ",17,General")
    assert subjects(manifest) == ["A"] and manifest.ignored == ["patient_id", "hospital"]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (HEADER.replace("subject", "patient,person_id"), "'patient' and 'person_id', which both"),
        (HEADER + ",x-ray", "'xray' and 'x-ray', which both read as 'xray'; keep one"),
        (HEADER.replace("age", "age (months)"), r"lacks the column 'age' \(is it 'age \(months\)'"),
        (HEADER.replace("subject", "sbject"), r"lacks the column 'subject' \(is it 'sbject'\?\)"),
        (HEADER.replace("xray_view", "view").replace("face_view", "x"), "lacks .* 'xray_view'"),
    ],
)
def test_names_with_several_readings(people, header, words):
    with pytest.raises(InputError, match=words):
        people(header, *ROWS)


def test_values_with_one_reading(people):
    row = "Ann\u00a0 Lee\u200b,x/a.png,P.A.,f/a.jpg,Front view, 34\u202f,Woman"
    (ann,) = people(HEADER, row).rows
    assert (ann.subject, ann.xray.view, ann.face.view) == ("Ann Lee", "frontal", "frontal")
    assert (ann.face.age, ann.sex) == (34.0, "female")
    for view, meant in (("LAT", "lateral"), ("rl", "lateral"), ("AP", "frontal")):
        (row,) = people(HEADER, ROWS[0].replace("png,frontal", f"png,{view}")).rows
        assert row.xray.view == meant
    for view in ("AP axial", "RLO", "L", "oblique"):
        assert numbers(people(HEADER, ROWS[0].replace("png,frontal", f"png,{view}"))) == [2]
    # One person, whose name came from two systems.
    decomposed = unicodedata.normalize("NFD", "Müller")
    manifest = people(
        HEADER, *(f"{n}{row[1:]}" for n, row in zip(["Müller", decomposed], ROWS[:2], strict=True))
    )
    assert set(subjects(manifest)) == {"Müller"}


def test_what_stands_for_no_value(people):
    manifest = people(HEADER + ",bmi_change", ROWS[0] + ",NA", "nan" + ROWS[1][1:] + ",")
    assert subjects(manifest) == ["A"] and manifest.problems == [(3, "subject is empty")]
    assert "a formula error" in people(HEADER, "#BEZUG!" + ROWS[0][1:]).problems[0][1]
    for name in ("1.23457E+15", "1,2E+15"):
        manifest = people(HEADER, f'"{name}"{ROWS[0][1:]}')
        assert "a spreadsheet has rounded; store it as text" in manifest.problems[0][1]
    assert subjects(people(HEADER, "3E5" + ROWS[0][1:], "#12" + ROWS[1][1:])) == ["3E5", "#12"]


NUMBERS = [
    ("21,9", ".", 21.9),
    ("21.9", ".,", 21.9),
    ("\u221221,9", ".", -21.9),
    ("\uff12\uff11", ".", 21.0),
    ("+.5", ".", 0.5),
    ("1e-17", ".", 1e-17),
    ("1.234", ".", 1.234),
    ("1,234", ",", 1.234),
    ("0,125", ".", 0.125),
    ("1,2345", ".", 1.2345),
]


@pytest.mark.parametrize(("text", "decimals", "value"), NUMBERS)
def test_numbers(text, decimals, value):
    values = Values(x=text)
    values.decimals = decimals
    assert number_of(values, "x", -100, 100, "pixels") == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text", "nan inf 1e3 0x10 1_000 1.234,5 1,234.5 1,234 34y ² 1e-3 --3 ½ True".split()
)
def test_what_is_no_number_of_years(text):
    with pytest.raises(Problem, match="x="):
        number_of(Values(x=text), "x", 0, 1e6, "years")


def test_three_decimals_or_thousands(people):
    header = ";".join([*NAMES, *LANDMARKS])
    points = ["101,125", "99,5", *["50,250"] * 8]
    (row,) = people(header, ";".join([ROWS[0].replace(",", ";"), *points])).rows
    assert row.face.landmarks[:3] == (101.125, 99.5, 50.25)
    (row,) = people(header, ";".join([ROWS[0].replace(",", ";"), *["101.125"] * 10])).rows
    assert row.face.landmarks[0] == 101.125
    points = ["1.234", "99,5", *["50,25"] * 8]
    manifest = people(header, ";".join([ROWS[0].replace(",", ";"), *points]))
    assert "in thousands or has three decimals" in manifest.problems[0][1]


# Paths.


def path(people, text):
    return path_of({"xray": text}, "xray", people.folder.resolve())


def test_paths_as_people_write_them(people):
    folder = people.folder.resolve()
    for name in ("m\u00fcller.png", "a [1], b.png", "back\\slash.png", "'quoted'.png"):
        (folder / "x" / name).write_bytes(b"p")
    for text in ("x\\a.png", '"x\\a.png"', "x/a.png ", str(folder / "x/a.png"), "./x//a.png"):
        assert path(people, text) == folder / "x/a.png"
    for text in ("x/mu\u0308ller.png", "x/m\u00fcller.png"):
        assert path(people, text) == folder / "x/m\u00fcller.png"
    for name in ("a [1], b.png", "back\\slash.png", "'quoted'.png"):
        assert path(people, f"x/{name}").name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x/A.PNG", "no such file; there is 'x/a.png'"),
        ("file:///x/a.png", "is a URL"),
        ("C:\\data\\a.png", "is a path on a Windows drive"),
        ("../outside.png", "lies outside"),
        ("x/link.png", "lies outside"),
        ("loop", "is not a path|no such file"),
        ("x/" + 300 * "a", "is not a path"),
        ("a\0b", "is not a path"),
        ("x", "is a folder"),
        ("x/empty.png", "is an empty file"),
    ],
)
def test_paths_that_lead_nowhere(people, text, words):
    (people.folder.parent / "outside.png").write_bytes(b"p")
    people(HEADER, ROWS[0])
    (people.folder / "x/empty.png").touch()
    (people.folder / "x/link.png").symlink_to(people.folder.parent / "outside.png")
    (people.folder / "loop").symlink_to("loop")
    with pytest.raises(Problem, match=words):
        file_of({"xray": text}, "xray", people.folder.resolve())


# Excel and Parquet.


def workbook(*rows, change=None):
    """Returns an Excel file's bytes."""
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    if change:
        change(book)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


ANN = [1017.0, "x/a.png", "frontal", "f/a.jpg", "frontal", 34.0, "F"]
BOB = ["007", "x/b.png", "frontal", "f/b.jpg", "frontal", "21,5", "m"]


def test_excel(people):
    content = workbook([], [*NAMES, "xray_inverted"], [*ANN, True], [], [*BOB, None], ["", " "])
    for name in ("list.xlsx", "list.XLSM", "list.csv"):
        manifest = people(content=content, name=name)
        assert subjects(manifest) == ["1017", "007"] and not manifest.problems
        assert [row.number for row in manifest.rows] == [3, 5]
        assert manifest.rows[0].xray.inverted and manifest.rows[1].face.age == 21.5


def test_cells_that_are_no_values(people):
    rows = [[*ANN], [*BOB], [*BOB], [*BOB]]
    rows[0][5] = "=17*2"  # never calculated, for no spreadsheet saved it
    rows[1][5] = datetime.date(1971, 3, 12)
    rows[2][5] = True
    rows[3][0] = 1234567890123456.0
    rows.append(["#REF!", *BOB[1:]])
    told = dict(people(content=workbook(NAMES, *rows), name="list.xlsx").problems)
    assert "age is a formula without a result" in told[2] and "is a date" in told[3]
    assert "'true' is not a number of years" in told[4]
    assert "a spreadsheet has rounded; store it as text" in told[5] and "a formula error" in told[6]


def test_formulas_with_a_result(people):
    """Edits the sheet as a spreadsheet would save it: a number, and an empty text."""
    names = [*NAMES, "bmi"]
    source = workbook(names, [*ANN, '=IF(A1="","",1)'], [*BOB, "=20+2"])
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(content, "w") as new:
        for entry in old.namelist():
            text = old.read(entry)
            if entry.endswith("sheet1.xml"):
                text = text.replace(b'<c r="H2"><f>', b'<c r="H2" t="str"><f>')
                text = text.replace(b"<f>20+2</f><v />", b"<f>20+2</f><v>22</v>")
                text = text.replace(b"<f>20+2</f><v></v>", b"<f>20+2</f><v>22</v>")
            new.writestr(entry, text)
    manifest = people(content=content.getvalue(), name="list.xlsx")
    assert subjects(manifest) == ["1017", "007"] and not manifest.problems


def test_sheets_and_hidden_rows(people, capsys):
    def notes(book):
        book.create_sheet("notes", 0).append(["how we measured"])
        book["Sheet"].row_dimensions[2].hidden = True

    manifest = people(content=workbook(NAMES, ANN, BOB, change=notes), name="list.xlsx")
    assert subjects(manifest) == ["1017", "007"]
    assert "1 hidden rows count like the others" in capsys.readouterr().err

    def twice(book):
        book.copy_worksheet(book.active)

    with pytest.raises(InputError, match="2 of its 2 sheets have the needed columns"):
        people(content=workbook(NAMES, ANN, change=twice), name="list.xlsx")
    with pytest.raises(InputError, match="lacks the column 'subject'"):
        people(content=workbook(["Cohort"], NAMES, ANN), name="list.xlsx")


def test_files_that_are_no_excel_list(people):
    content = workbook(NAMES, ANN)
    for damaged in (content[:2000], content[:-400], b"PK\x03\x04 and nothing"):
        with pytest.raises(InputError, match="a damaged Excel file"):
            people(content=damaged, name="list.xlsx")
    with pytest.raises(InputError, match="not a readable Excel file"):
        people(HEADER, name="list.xlsx")
    for entry, words in (
        ("mimetype", "an OpenDocument file"),
        ("Index/Document.iwa", "a Numbers file"),
        ("a.txt", "a zip file"),
    ):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(entry, "x")
        with pytest.raises(InputError, match=words):
            people(content=packed.getvalue(), name="list.xlsx")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", "x")
        with archive.open("xl/sharedStrings.xml", "w") as part:
            for _ in range(210):
                part.write(bytes(1_000_000))
    with pytest.raises(InputError, match="unpacks to more than 200 MB"):
        people(content=bomb.getvalue(), name="list.xlsx")
    with pytest.raises(InputError, match="is empty"):
        people(content=workbook([]), name="list.xlsx")


def test_parquet_of_other_types(people):
    def table(**changes):
        columns = {name: [value] for name, value in zip(NAMES, ANN, strict=True)} | changes
        content = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), content)
        return content.getvalue()

    category = pyarrow.array(["F"]).dictionary_encode()
    (row,) = people(content=table(sex=category, remarks=[["a", "b"]]), name="list.pq").rows
    assert (row.subject, row.sex) == ("1017", "female")
    ages = [(pyarrow.array([13000], pyarrow.date32()), "is a date"), ([None], "age is empty")]
    for age, words in [*ages, ([float("nan")], "age is empty"), ([True], "not a number")]:
        assert words in people(content=table(age=age), name="list.parquet").problems[0][1]
    with pytest.raises(InputError, match=r"lacks the column 'age' \(is it 'age \(nested\)'"):
        people(content=table(age=[[34]]), name="list.parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        people(content=table()[:-30] + b"PAR1", name="list.parquet")


def test_test_subjects(tmp_path):
    path = tmp_path / "held.txt"
    for text in ("\ufeffA\r\n", 'subject\n\n "A" \n', "A\r"):
        path.write_bytes(text.encode())
        assert splits.by_list(["A", "B"], path) == {"A": "test", "B": "train"}
    path.write_bytes("A\tM\u2028\r\n".encode("utf-16"))
    assert splits.by_list(["A M", "B"], path)["A M"] == "test"
    path.write_bytes(unicodedata.normalize("NFD", "Müller").encode())
    assert splits.by_list(["Müller", "B"], path)["Müller"] == "test"
    path.write_bytes(b"A\nC\n")
    with pytest.raises(InputError, match="line 2: no subject of that name"):
        splits.by_list(["A", "B"], path)
    with pytest.raises(InputError, match="split: .*No such file"):
        splits.by_list(["A", "B"], tmp_path / "none.txt")


def test_other_builders_read_tables_as_before(people):
    (people.folder / "list.csv").write_text("Subject,volume,AGE,sex\nA,x/a.png,34,F")
    names, lines = read_table(people.folder / "list.csv", ("subject", "volume", "age", "sex"))
    assert names == ["subject", "volume", "age", "sex"]
    assert list(lines) == [(2, {"subject": "A", "volume": "x/a.png", "age": "34", "sex": "F"})]


def test_mutations_end_in_a_sentence(people):
    """Bytes exchanged in lists of all kinds: rows, or one InputError."""
    draw = random.Random(0)
    content = "\n".join([HEADER, *ROWS]).encode()
    sheets = [content, content.decode().replace(",", ";").encode("utf-16"), workbook(NAMES, ANN)]
    for turn in range(90):
        mutated = bytearray(sheets[turn % 3])
        for _ in range(draw.randint(1, 4)):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        name = "list.xlsx" if turn % 3 == 2 else "list.csv"
        try:
            people(content=bytes(mutated), name=name)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_picture_that_may_not_be_read(people):
    people(HEADER, ROWS[0])
    (people.folder / "x/a.png").chmod(0)
    assert "you lack the permission" in people(HEADER, ROWS[0]).problems[0][1]
