"""CT volumes as hospitals and archives write them: read right, corrected with a remark, or refused.

A head whose surfaces are known in mm is sampled by every series and file. What is read is compared
with it place by place, so a shift, a flip or a stretch shows.
"""

import bz2
import gzip
import struct
import zlib

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from data_builders.errors import UnreadableError
from data_builders.rendering import ct
from data_builders.volumes import reading, series, stored

ROWS, COLUMNS, PIXEL = 72, 56, 4.0
HEIGHTS = np.arange(-116.0, 117.0, 5.0)
SPACING = (4.0, 4.0, 5.0)


def head_hu(x, y, z):
    """HU at mm on RAS+ axes: skin, skull, a nose in front and a dense ball in the right side."""
    radius = np.sqrt((x / 75) ** 2 + (y / 95) ** 2 + (z / 105) ** 2)
    values = np.where(radius < 1, 40.0, -1000.0)
    values[(radius > 0.8) & (radius < 0.92)] = 900.0
    values[(np.abs(x) < 12) & (np.abs(z + 10) < 14) & (y > 85) & (y < 115)] = 40.0
    values[(x - 55) ** 2 + (y - 10) ** 2 + (z + 20) ** 2 < 144] = 2000.0
    return values


def volume():
    """The head's HU as int16 on RAS+ axes, and its affine."""
    shape = (COLUMNS, ROWS, len(HEIGHTS))
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(shape, SPACING, strict=True)]
    grid = np.indices(shape)
    places = [affine[i, i] * grid[i] + affine[i, 3] for i in range(3)]
    return head_hu(*places).astype(np.int16), affine


def agreement(path, **stated):
    """Overlap of skin and of bone with the true head, and remarks."""
    head, remarks = ct.examine_head(path, 4.0, **stated)
    places = np.indices(head.values.shape) * 4.0 + np.asarray(head.origin)[:, None, None, None]
    true = head_hu(*places)
    pairs = [(true > level, head.values > level) for level in (-300, 300)]
    return min(2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs), remarks


def ball(path, **stated):
    """Where the dense ball lies from the middle of the head, in mm."""
    head, remarks = ct.examine_head(path, 4.0, **stated)
    middle = np.argwhere(head.values > -300).mean(0)
    return (np.argwhere(head.values > 1500).mean(0) - middle) * 4.0, remarks


def refusal(path, **stated):
    with pytest.raises(UnreadableError) as caught:
        ct.examine_head(path, 4.0, **stated)
    assert "Doe" not in str(caught.value) and str(path.parent) not in str(caught.value)
    return str(caught.value)


def dataset(values, k, intercept=-1024, syntax=ExplicitVRLittleEndian):
    """A slice of `(rows, columns)` HU, without its place."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
    data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = (
        "1.2.4",
        "1.2.5",
        "1.2.6",
    )
    data.PatientName, data.PatientID, data.Modality = "Doe^Jane", "4711", "CT"
    data.InstanceNumber, data.ImageType = k + 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, intercept
    data.PixelData = np.uint16(values - intercept).tobytes()
    return data


def slices(heights=HEIGHTS, tilt=0.0, shift=None, pixel=None):
    """Axial slices of the head; each samples it where its header says."""
    angle = np.deg2rad(tilt)
    row, column = np.array([1, 0, 0.0]), np.array([0, np.cos(angle), np.sin(angle)])
    result = []
    for k, height in enumerate(heights):
        size = PIXEL if pixel is None else pixel(k)
        origin = -(COLUMNS - 1) / 2 * size * row - (ROWS - 1) / 2 * size * column
        origin = origin + [0, 0, height] + (np.zeros(3) if shift is None else shift(k))
        i, j = np.indices((ROWS, COLUMNS))
        places = origin + size * (j[..., None] * row + i[..., None] * column)
        data = dataset(head_hu(-places[..., 0], -places[..., 1], places[..., 2]), k)
        data.ImageOrientationPatient = [*row, *column]
        data.ImagePositionPatient = [f"{p:.5f}" for p in origin]
        data.PixelSpacing, data.SliceThickness = [size, size], 5.0
        result.append(data)
    return result


def write(folder, datasets, name="IM{:04d}.dcm", order=None):
    folder.mkdir(exist_ok=True)
    for k, data in enumerate(datasets):
        little = data.file_meta.TransferSyntaxUID != pydicom.uid.ExplicitVRBigEndian
        implicit = data.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        target = folder / name.format(k if order is None else order[k])
        data.save_as(target, enforce_file_format=True, little_endian=little, implicit_vr=implicit)
    return folder


def changed(change, **settings):
    """The even series after `change(dataset, k)` of each slice."""
    result = slices(**settings)
    for k, data in enumerate(result):
        change(data, k)
    return result


REGIONS = np.r_[np.arange(-116, -10, 2.5), np.arange(-8, 117, 7.5)]
PAIRS = np.cumsum(np.r_[-116.0, np.tile([3.0, 3.0, 3.0, 6.0], 15)])


@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("even", {}, ""),
        ("rounded", {"heights": np.round(np.arange(-116, 117, 4.37), 1)}, ""),
        ("tilt", {"heights": np.arange(-160, 161, 5.0), "tilt": 18}, "tilted by 18.0"),
        ("other tilt", {"heights": np.arange(-160, 161, 5.0), "tilt": -24}, "tilted by 24.0"),
        ("regions", {"heights": REGIONS}, "2.50 to 7.50 mm apart"),
        ("pairs with a gap", {"heights": PAIRS}, "3.00 to 6.00 mm apart"),
        (
            "tilted regions",
            {"heights": np.r_[np.arange(-150, 0, 3), np.arange(3, 150, 6)], "tilt": 12},
            "resampled",
        ),
        (
            "table moved",
            {"shift": lambda k: np.array([6.0, -10.0, 0]) * (k > 20)},
            "other places of the first pixel",
        ),
        ("two pixel sizes", {"pixel": lambda k: 4.0 if k > 20 else 4.6}, "other pixel sizes"),
    ],
)
def test_slices_lie_where_their_positions_say(tmp_path, name, settings, words):
    folder = write(tmp_path / "s", slices(**settings))
    overlap, remarks = agreement(folder)
    assert overlap > 0.85, (name, remarks)
    assert any(words in remark for remark in remarks) if words else not remarks


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_neither_names_nor_numbers_nor_thickness_decide(tmp_path, order):
    datasets = changed(lambda d, k: setattr(d, "SliceThickness", 11.0))
    names = (
        np.arange(len(datasets))[::-1]
        if order == "reversed"
        else np.random.default_rng(0).permutation(len(datasets))
    )
    for data, number in zip(datasets, names, strict=True):
        data.InstanceNumber = int(number) + 1
    overlap, remarks = agreement(write(tmp_path / "s", datasets, "i.{}", names))
    assert overlap > 0.85 and not remarks


def test_sagittal_and_feet_first_stacks(tmp_path):
    values, affine = volume()
    datasets = []
    for k in range(COLUMNS):
        # Rows run to the back, columns to the feet; slices from the right to the left.
        data = dataset(values[k, ::-1, ::-1].T.astype(float), k)
        place = affine @ [k, ROWS - 1, len(HEIGHTS) - 1, 1]
        data.ImageOrientationPatient, data.PixelSpacing = (
            [0, 1, 0, 0, 0, -1],
            [SPACING[2], SPACING[1]],
        )
        data.ImagePositionPatient = [-place[0], -place[1], place[2]]
        datasets.append(data)
    assert agreement(write(tmp_path / "sagittal", datasets))[0] > 0.85
    datasets = []
    for k in range(len(HEIGHTS)):
        # Feet first: columns run to the right.
        data = dataset(values[:, ::-1, k].T.astype(float), k)
        place = affine @ [0, ROWS - 1, k, 1]
        data.ImageOrientationPatient, data.PixelSpacing = (
            [-1, 0, 0, 0, 1, 0],
            [SPACING[1], SPACING[0]],
        )
        data.ImagePositionPatient = [-place[0], -place[1], place[2]]
        datasets.append(data)
    assert agreement(write(tmp_path / "feet", datasets))[0] > 0.85


@pytest.mark.parametrize(
    "name, drop, renumber, words",
    [
        ("ten", range(20, 30), True, "about 10 slices of 47 are missing: between slices 20 and 21"),
        ("one", [25], True, "about 1 slice of 47 is missing: between slices 25 and 26"),
        ("two places", [12, 30, 31], True, "about 3 slices of 47"),
        ("next to the end", [45], True, "about 1 slice of 47"),
        ("every second of the upper half", range(25, 46, 2), False, "about 11 slices"),
    ],
)
def test_missing_slices(tmp_path, name, drop, renumber, words):
    datasets = [data for k, data in enumerate(slices()) if k not in set(drop)]
    for k, data in enumerate(datasets if renumber else []):
        data.InstanceNumber = k + 1
    assert words in refusal(write(tmp_path / "s", datasets))


def test_gaps():
    """A lone wide step is a gap; a region, a junction and a rhythm are protocols."""
    assert series.gaps(np.array([2.0, 2, 2, 4, 2, 2, 2])) == {3: 1}
    assert set(series.gaps(np.array([2.0] * 5 + [5, 5] + [2.0] * 5))) == {5, 6}
    assert series.gaps(np.array([2.5] * 9 + [0.25] + [7.5] * 5)) == {}
    assert series.gaps(np.array([2.0] * 9 + [3.5] + [5.0] * 5)) == {}
    assert series.gaps(np.array([2.5, 2.5, 2.5, 5.0] * 6)) == {}
    # The numbers say what positions can't.
    steps = np.array([4.0] * 6 + [8.0] * 5)
    assert series.gaps(steps, np.arange(12.0)) == {}
    assert sum(series.gaps(steps, np.r_[np.arange(7.0), 8, 10, 12, 14, 16]).values()) == 5


def scout(data, k):
    """Makes the first slice a scout, as headers say it."""
    if k == 0:
        data.ImageOrientationPatient, data.ImagePositionPatient = (
            [1, 0, 0, 0, 0, -1],
            [-100, 0, 150],
        )
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def silent_scout(data, k):
    scout(data, k)
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    if k == 0:
        data.SeriesInstanceUID = "1.2.99"


def other_scout_size(data, k):
    scout(data, k)
    if k == 0:
        data.Rows, data.PixelData = 30, data.PixelData[: 30 * COLUMNS * 2]


def report(data, k):
    if k == 0:
        data.Modality, data.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.67"
        for name in (
            "Rows",
            "Columns",
            "PixelData",
            "ImagePositionPatient",
            "ImageOrientationPatient",
        ):
            delattr(data, name)


def capture(data, k):
    if k == 0:
        data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        del data.ImagePositionPatient


@pytest.mark.parametrize(
    "change, words",
    [
        (scout, "left out 1 scout"),
        (silent_scout, "left out 1 image across the slices"),
        (other_scout_size, "left out 1 scout"),
        (report, "left out 1 object without pixels"),
        (capture, "left out 1 picture of a screen"),
    ],
)
def test_foreign_files_are_left_out(tmp_path, change, words):
    heights = np.r_[HEIGHTS[:1], HEIGHTS]
    folder = write(tmp_path / "s", changed(change, heights=heights))
    for name in ("Thumbs.db", "._IM0003.dcm", "DICOMDIR"):
        (folder / name).write_bytes(b"nothing of use")
    overlap, remarks = agreement(folder)
    assert overlap > 0.85 and len(remarks) == 1 and words in remarks[0]
    (folder / "notes.txt").write_text("of another kind")
    assert any(
        "left out 1 file without a DICOM header" in remark for remark in agreement(folder)[1]
    )


def some(name, value, count=1):
    """A change of the last `count` slices of the even series."""

    def change(data, k):
        if k >= len(HEIGHTS) - count:
            setattr(data, name, value)

    return change


def without(*names, count=99):
    def change(data, k):
        for name in names if k < count else ():
            delattr(data, name)

    return change


def smaller(data, k):
    if k in (3, 4):
        data.Rows, data.PixelData = 30, data.PixelData[: 30 * COLUMNS * 2]


@pytest.mark.parametrize(
    "change, words",
    [
        (some("SeriesInstanceUID", "1.9", 12), "holds 2 DICOM series (of 35 and 12 slices)"),
        (some("PatientID", "0815"), "slices of 2 patients (PatientID differs)"),
        (some("PatientName", "Roe^John"), "slices of 2 patients"),
        (some("FrameOfReferenceUID", "1.9"), "2 frames of reference"),
        (some("ImageOrientationPatient", [1, 0, 0, 0, 0.8, 0.6], 5), "5 of 47 slices are rotated"),
        (smaller, "2 of 47 slices have another size, such as (30, 56) in place of (72, 56)"),
        (some("Modality", "MR", 47), "images of the modality MR"),
        (some("Modality", "PT", 47), "images of the modality PT"),
        (some("ImageType", ["DERIVED", "SECONDARY", "LOCALIZER"], 47), "scouts only"),
        (without("ImagePositionPatient"), "47 of 47 slices lack ImagePositionPatient (0020"),
        (without("ImageOrientationPatient", count=3), "3 of 47 slices lack ImageOrientation"),
        (some("ImagePositionPatient", [0, 0, 0], 47), "one position for all slices"),
        (without("PixelSpacing"), "lack PixelSpacing (0028,0030)"),
        (some("PixelSpacing", [0, 0], 47), "PixelSpacing of 0"),
        (some("ImageOrientationPatient", [0] * 6, 47), "not a pair of orthogonal directions"),
        (some("RescaleSlope", 0, 47), "RescaleSlope of 0"),
        (without("RescaleSlope", "RescaleIntercept"), "State hu_offset=-1024"),
    ],
)  # fmt: skip
def test_series_that_are_refused(tmp_path, change, words):
    assert words in refusal(write(tmp_path / "s", changed(change)))


def test_damaged_slices(tmp_path):
    folder = write(tmp_path / "s", slices())
    good = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    names = list(good)
    for k in (15, 16, 17, 30):
        names[k].write_bytes(good[names[k]][:3000])
    assert "4 of 47 slices are truncated" in refusal(folder) and "16 to 18, 31" in refusal(folder)
    for k in (15, 16, 17, 30):
        names[k].write_bytes(good[names[k]])
    for content in (b"", bytes(2000), good[names[5]][:200]):
        names[5].write_bytes(content)
        assert "1 of 47" in refusal(folder) and "damaged" in refusal(folder)
    names[5].write_bytes(good[names[5]])
    assert agreement(folder)[0] > 0.85


def test_copies_and_two_reconstructions(tmp_path):
    folder = write(tmp_path / "s", slices())
    (folder / "copies").mkdir()
    for path in sorted(folder.glob("*.dcm"))[10:14]:
        (folder / "copies" / path.name).write_bytes(path.read_bytes())
    overlap, remarks = agreement(folder)
    assert overlap > 0.85 and remarks == ["left out 4 slices held twice"]
    both = []
    for kernel, grain in (("H31s", 0), ("H60s", 30)):
        for data in slices():
            values = np.frombuffer(data.PixelData, np.uint16).copy()
            data.PixelData, data.ConvolutionKernel = (values + np.uint16(grain)).tobytes(), kernel
            data.SOPInstanceUID += f".{grain}"
            both.append(data)
    assert "47 positions twice with different values (ConvolutionKernel differs)" in refusal(
        write(tmp_path / "t", both)
    )
    # A kernel for the base and one for the vault are fine.
    parts = changed(lambda d, k: setattr(d, "ConvolutionKernel", "H60s" if k < 20 else "H31s"))
    assert agreement(write(tmp_path / "u", parts))[0] > 0.85


def empty(data, k):
    if k in (20, 21, 22):
        data.PixelData = bytes(len(data.PixelData))


def other_intercept(data, k):
    if k == 20:
        data.RescaleIntercept = -24


@pytest.mark.parametrize("change, words", [(empty, "3 of 47"), (other_intercept, "1 of 47")])
def test_slices_unlike_their_neighbours(tmp_path, change, words):
    assert f"{words} slices do not look like" in refusal(write(tmp_path / "s", changed(change)))


def signed(data, k, padding=None):
    values = np.int32(np.frombuffer(data.PixelData, np.uint16)) - 1024
    if padding is not None:
        i, j = np.indices((ROWS, COLUMNS))
        values[(((i - 35.5) ** 2 + (j - 27.5) ** 2) > 35**2).ravel()] = padding
        data.add_new("PixelPaddingValue", "SS", padding)
    data.PixelData, data.PixelRepresentation = np.int16(values).tobytes(), 1
    data.RescaleIntercept = 0


def own_scale(data, k):
    slope, intercept = 1 + k % 3, -1024 - 10 * k
    values = np.frombuffer(data.PixelData, np.uint16).astype(float) - 1024
    data.PixelData = np.uint16(np.round((values - intercept) / slope)).tobytes()
    data.RescaleSlope, data.RescaleIntercept = slope, intercept


def overlay(data, k):
    values = np.frombuffer(data.PixelData, np.uint16).copy()
    values[: COLUMNS * 30] |= 1 << 15
    data.PixelData, data.BitsStored, data.HighBit = values.tobytes(), 12, 11


def shifted_bits(data, k):
    data.PixelData = (np.frombuffer(data.PixelData, np.uint16) << 4).tobytes()
    data.BitsStored, data.HighBit = 12, 15


def big_endian(data, k):
    data.PixelData = np.frombuffer(data.PixelData, np.uint16).astype(">u2").tobytes()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian


def implicit(data, k):
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


def run_length(data, k):
    data.compress(pydicom.uid.RLELossless, generate_instance_uid=False)


@pytest.mark.parametrize(
    "change, words",
    [
        (signed, ""),
        (lambda d, k: signed(d, k, -2000), ""),
        (lambda d, k: signed(d, k, 40), ""),
        (lambda d, k: signed(d, k, 3000), ""),
        (own_scale, ""),
        (overlay, "bits above BitsStored"),
        (shifted_bits, ""),
        (big_endian, ""),
        (implicit, ""),
        (run_length, ""),
        (without("InstanceNumber", "SliceThickness", "ImageType", "FrameOfReferenceUID"), ""),
    ],
)
def test_pixels_of_all_kinds(tmp_path, change, words):
    overlap, remarks = agreement(write(tmp_path / "s", changed(change), "{}"))
    assert overlap > 0.85
    assert any(words in remark for remark in remarks) or not words


def enhanced(datasets):
    """The slices as frames of one enhanced CT."""
    data = datasets[0]
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    frames = []
    for each in datasets:
        frame, place, plane = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient, plane.ImageOrientationPatient = (
            each.ImagePositionPatient,
            each.ImageOrientationPatient,
        )
        frame.PlanePositionSequence, frame.PlaneOrientationSequence = [place], [plane]
        frames.append(frame)
    shared, measures, transform = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = data.PixelSpacing, 5.0
    transform.RescaleSlope, transform.RescaleIntercept = 1, -1024
    shared.PixelMeasuresSequence, shared.PixelValueTransformationSequence = [measures], [transform]
    data.PixelData = b"".join(each.PixelData for each in datasets)
    data.PerFrameFunctionalGroupsSequence, data.SharedFunctionalGroupsSequence = frames, [shared]
    data.NumberOfFrames = len(datasets)
    for name in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(data, name)
    return data


def test_enhanced_ct(tmp_path):
    folder = write(tmp_path / "s", [enhanced(slices())])
    for path in (folder, folder / "IM0000.dcm"):
        overlap, remarks = agreement(path)
        assert overlap > 0.85 and not remarks
    tilted = write(tmp_path / "t", [enhanced(slices(np.arange(-160, 161, 5.0), 18))])
    assert agreement(tilted)[0] > 0.85
    data = enhanced(slices())
    del data.PerFrameFunctionalGroupsSequence
    assert "does not say where each lies" in refusal(write(tmp_path / "u", [data]))
    one = write(tmp_path / "v", slices()[:1])
    assert "name the folder" in refusal(one / "IM0000.dcm") and "1 slice" in refusal(one)


def test_archives_and_strange_files(tmp_path):
    for name, content in {
        "a.zip": b"PK\x03\x04abc",
        "b.nii": b"hello",
        "c.mha": b"no volume",
        "d": b"",
        "e.nii.gz": b"\x1f\x8b\x08",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "not a readable" in refusal(tmp_path / name), name
    assert "ZIP" in refusal(tmp_path / "a.zip")
    assert "No such file" in refusal(tmp_path / "none.nii")


def nifti(path, values, affine, **header):
    image = nibabel.Nifti1Image(values, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def test_nifti_orientation(tmp_path):
    values, affine = volume()
    path = nifti(tmp_path / "a.nii.gz", values, affine)
    assert agreement(path)[0] > 0.85 and not agreement(path)[1]
    assert agreement(path, orientation="RAS")[0] > 0.85
    assert "its header states the orientation RAS, the list LPS" in refusal(path, orientation="LPS")
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "b.nii")
    assert "sform_code and qform_code are 0" in refusal(
        tmp_path / "b.nii"
    ) and "`orientation`" in refusal(tmp_path / "b.nii")
    place = ball(path)[0]
    assert place[0] > 40 and place[1] > 0 and place[2] < -10
    np.testing.assert_allclose(ball(tmp_path / "b.nii", orientation="RAS")[0], place, atol=1)
    np.testing.assert_allclose(
        ball(tmp_path / "b.nii", orientation="LPS")[0], place * [-1, -1, 1], atol=8
    )


def both(sform, qform):
    def change(image):
        image.set_sform(sform(image.affine), 1)
        image.set_qform(qform(image.affine), 1)

    return change


def same(affine):
    return affine


def mirrored(affine):
    return np.diag([-1.0, 1, 1, 1]) @ affine


def field(**values):
    def change(image):
        for name, value in values.items():
            image.header[name] = value

    return change


def scaled(factor, unit):
    def change(image):
        image.set_sform(np.diag([factor, factor, factor, 1]) @ image.affine, 1)
        image.set_qform(None, 0)
        image.header["xyzt_units"] = unit

    return change


def template(image):
    affine = image.affine.copy()
    image.set_qform(affine, 1)
    image.set_sform(np.diag([1.2, 1.15, 1.2, 1]) @ affine, 4)


def sheared(degrees):
    def change(image):
        affine = image.affine.copy()
        affine[1, 2] += np.tan(np.deg2rad(degrees)) * affine[2, 2]
        image.set_sform(affine, 1)
        image.set_qform(None, 0)

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (both(same, mirrored), "refused: sform and qform lie 180 degrees apart"),
        (both(same, same), ""),
        (template, "sform_code 3 or 4"),
        (scaled(0.001, 1), "in metres were converted to mm"),
        (scaled(1000, 3), "in micrometres were converted to mm"),
        (scaled(1, 1), "mm were used"),
        (
            scaled(0.1, 2),
            "refused: mm long; a head is expected. Are its voxel sizes in centimetres?",
        ),
        (scaled(100, 2), "refused: a head is expected"),
        (scaled(0, 2), "refused: does not say how its voxels lie"),
        (sheared(60), "refused: does not say how its voxels lie"),
        (field(scl_slope=np.nan), ""),
        (field(scl_slope=0), ""),
    ],
)
def test_nifti_headers_that_contradict(tmp_path, change, words):
    values, affine = volume()
    image = nibabel.Nifti1Image(values, affine)
    change(image)
    nibabel.save(image, tmp_path / "a.nii")
    if words.startswith("refused: "):
        assert words.removeprefix("refused: ") in refusal(tmp_path / "a.nii")
    else:
        overlap, remarks = agreement(tmp_path / "a.nii")
        assert overlap > 0.85 and any(words in remark for remark in [*remarks, ""])


def test_nifti_kinds(tmp_path):
    """Pairs, NIfTI-2, other byte orders and types, a fourth axis of 1, names that lie."""
    values, affine = volume()
    nibabel.save(nibabel.Nifti1Pair(values, affine), tmp_path / "pair.hdr")
    nibabel.save(nibabel.Nifti2Image(values, affine), tmp_path / "two.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values[..., None], affine), tmp_path / "four.nii")
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float64), affine), tmp_path / "double.nii")
    swapped = nibabel.Nifti1Header(endianness=">")
    swapped.set_data_dtype(np.dtype(">i2"))
    nibabel.save(nibabel.Nifti1Image(values, affine, swapped), tmp_path / "swapped.nii")
    (tmp_path / "plain.nii.gz").write_bytes((tmp_path / "four.nii").read_bytes())
    (tmp_path / "packed.nii").write_bytes((tmp_path / "two.nii.gz").read_bytes())
    (tmp_path / "noending").write_bytes((tmp_path / "four.nii").read_bytes())
    for name in (
        "pair.hdr",
        "pair.img",
        "two.nii.gz",
        "four.nii",
        "double.nii",
        "swapped.nii",
        "plain.nii.gz",
        "packed.nii",
        "noending",
    ):
        scan = reading.read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.values, values, name)
        np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
    nibabel.save(nibabel.AnalyzeImage(values, np.diag([*SPACING, 1])), tmp_path / "old.img")
    assert "Analyze header" in refusal(tmp_path / "old.img")
    assert ball(tmp_path / "old.hdr", orientation="RAS")[0][0] > 40
    (tmp_path / "pair.img").unlink()
    assert "the .img file beside it is missing" in refusal(tmp_path / "pair.hdr")
    nibabel.save(nibabel.Nifti1Image(np.stack([values] * 2, -1), affine), tmp_path / "time.nii")
    assert "array of shape (56, 72, 47, 2)" in refusal(tmp_path / "time.nii")


def test_compressed_nifti_is_read_to_its_checksum(tmp_path):
    values, affine = volume()
    raw = nifti(tmp_path / "a.nii", values, affine).read_bytes()
    packed = gzip.compress(raw, mtime=0)
    path = tmp_path / "z.nii.gz"
    for place in range(30, len(packed) - 8, len(packed) // 40):
        content = bytearray(packed)
        content[place : place + 16] = bytes(16)
        path.write_bytes(content)
        if content != packed:
            assert "checksum" in refusal(path) or "header" in refusal(path)
    for content in (packed[:-8], packed[:-8] + bytes(8), packed[: len(packed) // 2], packed[:-3]):
        path.write_bytes(content)
        assert "checksum" in refusal(path)
    blocks = b"".join(gzip.compress(raw[k : k + 30_000]) for k in range(0, len(raw), 30_000))
    for content in (packed + b"garbage", packed + bytes(700), blocks, blocks + gzip.compress(b"")):
        path.write_bytes(content)
        np.testing.assert_array_equal(reading.read_scan(path).values, values)
    path.write_bytes(gzip.compress(raw[:-100]))
    assert "cut off: 99 %" in refusal(path)
    bomb = bytearray(raw[:352])
    bomb[42:48] = struct.pack("<3h", 900, 900, 700)
    path.write_bytes(gzip.compress(bytes(bomb) + bytes(1 << 22)))
    assert "more voxels than any CT" in refusal(path)


@pytest.mark.parametrize(
    "offset, kind, value, words",
    [
        (70, "<h", 1, "binary values"),
        (70, "<h", 128, "RGB values"),
        (70, "<h", 32, "complex64 values"),
        (70, "<h", 26996, "datatype (26996)"),
        (108, "<f", 100.0, "vox_offset is 100"),
        (108, "<f", np.nan, "vox_offset is nan"),
        (42, "<h", -5, "array of shape (-5, 72, 47)"),
        (40, "<h", 9, "dim[0]"),
        (46, "<h", 46, "more values than its header says"),
        (46, "<h", 48, "cut off"),
        (80, "<f", np.nan, "voxel sizes"),
        (280, "<f", np.inf, "how its voxels lie"),
    ],
)
def test_nifti_headers_that_lie(tmp_path, capfd, offset, kind, value, words):
    values, affine = volume()
    raw = bytearray(nifti(tmp_path / "a.nii", values, affine).read_bytes())
    if offset == 80:
        raw[254:256] = bytes(2)
        raw[252:254] = bytes([1, 0])
    raw[offset : offset + struct.calcsize(kind)] = struct.pack(kind, value)
    (tmp_path / "b.nii").write_bytes(raw)
    assert words in refusal(tmp_path / "b.nii")
    assert capfd.readouterr() == ("", "")


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 56 72 47\nendian: little\n"
DIRECTIONS = "space directions: (4,0,0) (0,4,0) (0,0,5)\nspace origin: (-110,-142,-115)\n"


def test_nrrd(tmp_path):
    values, _ = volume()
    path, raw = tmp_path / "a.nrrd", values.astype("<i2").tobytes(order="F")

    def put(fields, data=raw, name="a.nrrd"):
        (tmp_path / name).write_bytes(f"{NRRD}{fields}\n".encode() + data)

    place = ball(nifti(tmp_path / "a.nii", *volume()))[0]
    for encoding, data in {
        "raw": raw,
        "gzip": gzip.compress(raw),
        "bzip2": bz2.compress(raw),
    }.items():
        put(f"encoding: {encoding}\nspace: right-anterior-superior\n{DIRECTIONS}", data)
        np.testing.assert_allclose(ball(path)[0], place, atol=1)
    put(
        f"encoding: ascii\nspace: RAS\n{DIRECTIONS}", " ".join(map(str, values.ravel("F"))).encode()
    )
    np.testing.assert_allclose(ball(path)[0], place, atol=1)
    put(f"encoding: raw\nspace: LPS\n{DIRECTIONS}")
    np.testing.assert_allclose(ball(path)[0], place * [-1, -1, 1], atol=8)
    for fields, words in {
        "encoding: raw\nspacings: 4 4 5\n": "`space` is absent",
        f"encoding: raw\nspace dimension: 3\n{DIRECTIONS}": "`space` is absent",
        f"encoding: raw\nspace: scanner-xyz\n{DIRECTIONS}": "`space` names no anatomical",
        f"encoding: gzip\nspace: RAS\n{DIRECTIONS}": "checksum",
        f"encoding: raw\nspace: RAS\ndata file: ../a.raw\n{DIRECTIONS}": "outside of its folder",
        f"encoding: raw\nspace: RAS\ndata file: b.raw\n{DIRECTIONS}": "missing beside it",
        f"encoding: raw\nspace: RAS\ndata file: LIST\n{DIRECTIONS}": "several files",
    }.items():
        put(fields)
        assert words in refusal(path), fields
    put("encoding: raw\nspacings: 4 4 5\n")
    np.testing.assert_allclose(ball(path, orientation="RAS")[0], place, atol=1)
    put(f"encoding: gzip\nspace: RAS\n{DIRECTIONS}", gzip.compress(raw)[:-5])
    assert "checksum" in refusal(path)
    put(f"encoding: raw\nspace: RAS\n{DIRECTIONS}", raw[:-10])
    assert "cut off" in refusal(path)
    put(f"encoding: raw\nspace: RAS\ndata file: b.raw\n{DIRECTIONS}", b"", "a.nhdr")
    (tmp_path / "b.raw").write_bytes(raw)
    np.testing.assert_allclose(ball(tmp_path / "a.nhdr")[0], place, atol=1)


def test_metaimage(tmp_path):
    values, _ = volume()
    path = tmp_path / "a.mha"
    raw = values[::-1, ::-1].astype("<i2").tobytes(order="F")

    def put(data=raw, file="LOCAL", name="a.mha", **fields):
        fields = {
            "ObjectType": "Image",
            "NDims": 3,
            "BinaryData": True,
            "CompressedData": False,
            "TransformMatrix": "1 0 0 0 1 0 0 0 1",
            "Offset": "-110 -142 -115",
            "AnatomicalOrientation": "RAI",
            "ElementSpacing": "4 4 5",
            "DimSize": "56 72 47",
            "ElementType": "MET_SHORT",
        } | fields
        lines = [f"{key} = {value}\n" for key, value in fields.items() if value is not None]
        (tmp_path / name).write_bytes(
            "".join([*lines, f"ElementDataFile = {file}\n"]).encode() + data
        )

    place = ball(nifti(tmp_path / "a.nii", *volume()))[0]

    def check(**stated):
        found, remarks = ball(path, **stated)
        np.testing.assert_allclose(found, place, atol=1)
        return remarks

    put()
    assert check() == [] and "the list RAS" in refusal(path, orientation="RAS")
    put(zlib.compress(raw), CompressedData=True)
    check()
    put(TransformMatrix=None)
    check()
    put(AnatomicalOrientation="???")
    check()
    put(Offset="0 0 0")
    assert "identity directions" in check()[0]
    # Such a file may be corrected by the list.
    put(values.astype("<i2").tobytes(order="F"), Offset="0 0 0")
    assert "lies as the list states" in check(orientation="RAS")[0]
    put(raw[::-1], BinaryDataByteOrderMSB=True, TransformMatrix="-1 0 0 0 -1 0 0 0 -1")
    check()
    put(TransformMatrix=None, AnatomicalOrientation="???")
    assert "TransformMatrix is absent" in refusal(path)
    check(orientation="LPS")
    for wrong, words in (
        ({"data": zlib.compress(raw)[:-2], "CompressedData": True}, "checksum"),
        ({"data": raw[:-9]}, "cut off"),
        ({"data": raw + bytes(9000)}, "more values"),
        ({"file": "LIST"}, "several files"),
        ({"file": "a%03d.raw 1 47 1"}, "several files"),
        ({"file": "/tmp/a.raw"}, "outside of its folder"),
        ({"file": "a.zraw"}, "missing beside it"),
        ({"ElementType": "MET_SHORT_ARRAY"}, "one value per voxel"),
        ({"ElementNumberOfChannels": 3}, "one value per voxel"),
        ({"DimSize": "56 72"}, "lacks DimSize"),
        ({"DimSize": "56 72 a"}, "lacks DimSize"),
        ({"ElementSpacing": None}, "size of its voxels"),
        ({"ElementSpacing": "0 4 5"}, "voxel sizes"),
        ({"DimSize": "9999 9999 9999"}, "more voxels"),
    ):
        put(**wrong)
        assert words in refusal(path), wrong
    put(b"", "b.raw", "a.mhd")
    (tmp_path / "b.raw").write_bytes(raw)
    np.testing.assert_allclose(ball(tmp_path / "a.mhd")[0], place, atol=1)


def circle(shape):
    """What lies outside of the scan circle."""
    i, j, _ = np.indices(shape)
    return (i - 27.5) ** 2 + (j - 35.5) ** 2 > 36**2


def magnetic(values, rng):
    """An MR-like volume: dark bone and air, wide ranges of tissue, a bias field."""
    tissue = np.where(values > 200, 60.0, np.where(values > -300, 500.0, 10.0))
    bias = np.linspace(0.6, 1.6, values.shape[0])[:, None, None]
    return (tissue * bias + rng.normal(0, 40, values.shape) * (values > -300)).clip(0)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v: v + 1024, "CT numbers with 1024 added. State hu_offset=-1024"),
        (lambda v: v + 1000, "State hu_offset=-1000"),
        (lambda v: (v + 1024.0) / 4095, "0 to 1"),
        (lambda v: (v.clip(-1000, 1000) + 1000) / 2000 * 255, "0 to 255"),
        (lambda v: magnetic(v, np.random.default_rng(0)), "look like MR"),
        (lambda v: np.where(v > 200, 40, v), "as dense as bone"),
        (lambda v: np.where(np.indices(v.shape)[0] < 28, v, -1000), "not a whole head"),
        (lambda v: np.where(np.indices(v.shape)[1] < 36, v, -1000), "not a whole head"),
        (lambda v: np.where(np.indices(v.shape)[2] < 24, v, -1000), "not a whole head"),
        (lambda v: v[:28], "not a whole head"),
        (lambda v: v[:, 30:], "not a whole head"),
        (lambda v: v[:, :, 23:], "not a whole head"),
    ],
)
def test_what_is_no_ct_of_a_head(tmp_path, change, words):
    values, affine = volume()
    path = nifti(tmp_path / "a.nii", np.asarray(change(values)), affine)
    assert words in refusal(path)


def test_other_parts_of_a_body(tmp_path):
    values, _ = volume()
    x, y, _ = (np.indices((100, 70, 60))[i] * 4.0 - (200, 140, 120)[i] for i in range(3))
    abdomen = np.where((x / 170) ** 2 + (y / 110) ** 2 < 1, 30.0, -1000.0)
    spine = x**2 + (y + 70) ** 2 < 25**2
    abdomen[spine] = 600.0
    assert "is not a head" in refusal(
        nifti(tmp_path / "a.nii", abdomen.astype(np.int16), np.diag([4, 4, 4, 1]))
    )
    thigh = np.where(x**2 + y**2 < 80**2, 30.0, -1000.0)
    thigh[x**2 + y**2 < 20**2] = 1200.0
    assert "is not a head" in refusal(
        nifti(tmp_path / "b.nii", thigh.astype(np.int16), np.diag([4, 4, 4, 1]))
    )
    whole = np.full((100, 72, 220), -1000, np.int16)
    whole[22:78, :, -47:] = values
    whole[10:90, 10:60, :-50] = 30
    whole[40:60, 25:45, :-36] = 500
    assert "more than a head" in refusal(nifti(tmp_path / "c.nii", whole, np.diag([4, 4, 5, 1])))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v: v.astype(np.uint16), "65536 was subtracted"),
        (lambda v: np.where(v <= -1000, 0, v), "masked with 0"),
        (lambda v: np.where(circle(v.shape), 0, v), "masked with 0"),
        (lambda v: v - 50, ""),
        (lambda v: np.where(v <= -1000, -3024, v), ""),
        (lambda v: np.where(v == 2000, 30000, v), ""),
        (lambda v: v + np.random.default_rng(0).normal(0, 60, v.shape), ""),
        (lambda v: v[:, :, :-9], "vault is incomplete"),
        (lambda v: v[:, :, 14:], "lower face may be missing"),
        (lambda v: v[:, :-8], "cuts the head at the front"),
    ],
)
def test_heads_that_are_read_with_a_remark_at_most(tmp_path, change, words):
    values, affine = volume()
    path = nifti(tmp_path / "a.nii", np.asarray(change(values)), affine)
    overlap, remarks = agreement(path)
    if "cut" not in words and "missing" not in words and "incomplete" not in words:
        assert overlap > 0.8
    assert any(words in remark for remark in remarks) if words else not remarks
    assert ct.read_head(path, 4.0).values.max() <= 3071


def test_hu_offset(tmp_path):
    values, affine = volume()
    path = nifti(tmp_path / "a.nii", values + np.int16(1024), affine)
    assert agreement(path, hu_offset=-1024)[0] > 0.85
    assert "Hounsfield units" in refusal(nifti(tmp_path / "b.nii", values, affine), hu_offset=-1024)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, 1e30])
def test_voxels_without_a_value(tmp_path, hole):
    values, affine = volume()

    def put(where):
        spoiled = values.astype(np.float32)
        spoiled[where] = hole
        return nifti(tmp_path / "a.nii", spoiled, affine)

    i, j, k = np.indices(values.shape)
    for where, count in (
        ((28, 36, 23), 1),
        (circle(values.shape), circle(values.shape).sum()),
        (values <= -1000, (values <= -1000).sum()),
        (k == len(HEIGHTS) - 1, (k == 0).sum()),
    ):
        overlap, remarks = agreement(put(where))
        assert overlap > 0.85 and remarks[0].startswith(f"{count} voxel")
    inside = np.abs(i - 28) + np.abs(j - 36) + np.abs(k - 23) < 6
    assert "inside of the head" in refusal(put(inside))
    assert "1 whole slices" in refusal(put(k == 23)) and "2 whole slices" in refusal(
        put(np.abs(j - 35.5) < 1)
    )
    assert "inside of the head" in refusal(put(values < 99999))


def test_real_heads(shared_data):
    cut = ["the scan cuts the head at the top: its vault is incomplete"]
    for name, words in (("cthead", []), ("headsq", cut)):
        head, remarks = ct.examine_head(shared_data / "ct" / f"{name}.nii.gz", 4.0)
        assert remarks == words and (head.values > 300).sum() * 0.064 > 300


@pytest.mark.parametrize("name", ["cthead", "headsq"])
@pytest.mark.parametrize("flips, words", [((1, 1, -1), "upside down"), ((1, -1, 1), "")])
def test_a_real_head_upside_down(shared_data, tmp_path, name, flips, words):
    image = nibabel.load(shared_data / "ct" / f"{name}.nii.gz")
    values = np.asarray(image.dataobj)[:: 2 if name == "cthead" else 1]
    affine = np.diag([*flips, 1]) @ image.affine @ np.diag([2 if name == "cthead" else 1, 1, 1, 1])
    path = nifti(tmp_path / "a.nii", values, affine)
    if words:
        assert words in refusal(path)
    else:
        ct.examine_head(path, 4.0)


def test_stored_values_stop_at_what_was_promised():
    with pytest.raises(UnreadableError, match="more values"):
        stored.values_of(iter([bytes(1 << 20)] * 1000), np.dtype("i2"), (20, 20, 20))
