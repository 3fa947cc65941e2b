"""Radiographs from files of all kinds, and the text that is burned into them."""

import pathlib
import warnings

import jax
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.data import get_testdata_files
from scipy import ndimage

from data_builders.cranio_phantom import cohort, head
from data_builders.cranio_phantom.cranio_phantom_dataset_builder import PhantomConfig
from data_builders.images.burned_in import Box, covered, find_text, paint_over
from data_builders.images.photograph import read_photograph
from data_builders.images.radiograph import UnreadableError, read_radiograph
from data_builders.images.squares import PLACES, fitting, moved, padding, take
from data_builders.rendering import ct, xray
from data_builders.rendering.volume import Frame


@pytest.fixture(scope="module")
def phantoms():
    """Four X-rays of 512 pixels."""
    spread, made = PhantomConfig().spread, []
    with jax.numpy_rank_promotion("allow"):
        for index in (1, 5):
            skull, tissue, _ = cohort.appearance(cohort.draw(0, index), 45, 0, spread)
            made += [np.asarray(x).squeeze() for x in head.radiographs(skull, tissue, 512, 2.0)]
    return made


def scaled(picture, size):
    return np.clip(np.asarray(Image.fromarray(picture.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)), 0, 1)


def burn(picture, words, size, place, value=255):
    """The picture with words at `(row, column)`, parts of its side; and each connected part of them as a mask."""
    image = Image.fromarray(np.uint8(picture * 255))
    before, side = np.asarray(image).astype(int), picture.shape[0]
    font = ImageFont.load_default(max(10, round(size * side)))
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), words, font=font)
    y, x = (min(round(part * side), side - span - 2) for part, span in zip(place, (bottom - top, right - left), strict=True))
    draw.text((x - left, y - top), words, font=font, fill=value)
    labels, count = ndimage.label(np.asarray(image) - before > 30, np.ones((3, 3)))
    return np.asarray(image, np.float32) / 255, [labels == i for i in range(1, count + 1) if (labels == i).sum() >= 10]


TEXTS = (
    ("DOE^JANE", 0.03, (0.02, 0.02)), ("12/03/1971", 0.025, (0.02, 0.95)), ("R", 0.07, (0.1, 0.05)), ("L", 0.05, (0.9, 0.95)),
    ("Smith, John A.", 0.04, (0.95, 0.02)), ("ID: 0042317", 0.02, (0.97, 0.9)), ("2019-05-14 10:32", 0.03, (0.3, 0.62)),
)  # fmt: skip


@pytest.mark.parametrize("size", [256, 512, 1300])
def test_nothing_legible_survives(phantoms, size):
    """Names, dates and markers of several sizes in several places, one of them across the skull."""
    rng = np.random.default_rng(size)
    glyphs = missed = 0
    for number, phantom in enumerate(phantoms):
        clean = np.clip(scaled(phantom, size) + 0.01 * rng.standard_normal((size, size)), 0, 1).astype(np.float32)
        picture, parts = clean, []
        for words, height, place in TEXTS[number % 2 :: 2]:
            picture, more = burn(picture, words, height, place, value=255 if number else 235)
            parts += more
        boxes = find_text(picture)
        mask, painted = covered(boxes, picture.shape), paint_over(picture, boxes)
        np.testing.assert_array_equal(painted[~mask], picture[~mask])
        for part in parts:
            glyphs += 1
            # A letter is gone where its pixels are as dark as what is around it.
            missed += mask[part].mean() < 0.9
        skull = clean > 0.25
        touched = (mask & skull & (np.abs(painted - clean) > 0.05)).sum() / skull.sum()
        assert touched < 0.02, (number, touched)
    assert glyphs > 60 and missed == 0


def test_a_picture_without_text_is_left_alone(phantoms, shared_data):
    volume = ct.read_head(shared_data / "ct" / "cthead.nii.gz", voxel=1.25)
    volume, frame = ct.boxed(volume), Frame(512, ct.WIDTH, (0.0, 0.0, 0.0))
    pictures = [*phantoms, *(np.asarray(xray.radiograph(volume, frame, view)) for view in ("frontal", "lateral"))]
    for picture in pictures:
        for size in (512, 900):
            mask = covered(find_text(scaled(picture, size)), (size, size))
            assert (mask & (scaled(picture, size) > 0.25)).sum() < 0.02 * (scaled(picture, size) > 0.25).sum()


def test_painting_uses_nothing_of_the_inside():
    picture = np.linspace(0.2, 0.6, 50)[None].repeat(40, 0)
    secret = picture.copy()
    secret[10:20, 15:30] = np.random.default_rng(0).random((10, 15))
    boxes = [Box(10, 15, 20, 30)]
    np.testing.assert_array_equal(paint_over(secret, boxes), paint_over(picture, boxes))
    assert np.abs(paint_over(secret, boxes) - picture).max() < 0.1
    assert paint_over(picture, [Box(0, 0, 40, 50)]).max() == 0


@pytest.fixture
def dicom(tmp_path):
    """Writes a DICOM file of 16 bit, with changes."""

    def write(values, name="x.dcm", **changes):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
        data.Rows, data.Columns = values.shape[:2]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.PatientName = "Doe^Jane"
        data.PixelData = values.astype(np.uint16).tobytes()
        for key, value in changes.items():
            setattr(data, key, value)
        data.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    return write


def test_dicom_values(dicom):
    values = np.linspace(1000, 5000, 60 * 40).reshape(60, 40)
    plain = read_radiograph(dicom(values))
    assert plain.shape == (60, 40) and plain[0, 0] == 0 and plain[-1, -1] == 1 and abs(plain[30, 0] - 0.5) < 0.02
    np.testing.assert_allclose(read_radiograph(dicom(values, PhotometricInterpretation="MONOCHROME1")), 1 - plain, atol=0.01)
    np.testing.assert_allclose(read_radiograph(dicom(values), inverted=True), 1 - plain, atol=1e-6)
    windowed = read_radiograph(dicom(values, WindowCenter=2000, WindowWidth=1000, RescaleSlope=1, RescaleIntercept=0))
    assert windowed[0, 0] == 0 and windowed[30, 0] == 1  # above the window all is white
    # Its content says what it is, not its name.
    assert read_radiograph(dicom(values, name="anything")).shape == (60, 40)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(NumberOfFrames=3), "a DICOM file of 3 frames"),
        (dict(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "a DICOM file in colours"),
        (dict(PixelData=b"\0" * 100), "damaged, or in a form that can't be decoded"),
    ],
)
def test_dicom_that_is_no_xray(dicom, changes, words):
    with pytest.raises(UnreadableError, match=words) as caught:
        read_radiograph(dicom(np.arange(600).reshape(30, 20), **changes))
    assert "Doe" not in str(caught.value) and "/" not in str(caught.value)


def test_truncated_dicom(dicom):
    path = dicom(np.arange(6000).reshape(100, 60))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UnreadableError, match="damaged"):
        read_radiograph(path)


def test_dicom_files_of_pydicom_itself():
    """Files of every kind that its authors test with: a picture or a sentence, never a traceback."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = [pathlib.Path(f) for f in get_testdata_files("*.dcm")]
    read, refused = 0, 0
    for file in files:
        try:
            picture = read_radiograph(file)
            assert picture.ndim == 2 and 0 <= picture.min() < picture.max() <= 1
            read += 1
        except UnreadableError as error:
            assert str(error)
            refused += 1
    assert read >= 15 and read + refused == len(files) >= 50


def test_pictures_that_are_no_xray(tmp_path):
    def refused(words, path):
        with pytest.raises(UnreadableError, match=words):
            read_radiograph(path)

    refused("no such file", tmp_path / "gone.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "colour.png")
    refused("a picture in colours", tmp_path / "colour.png")
    Image.new("L", (30, 20)).save(tmp_path / "black.png")
    refused("all pixels have the value 0", tmp_path / "black.png")
    frames = [Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "many.tiff", save_all=True, append_images=frames[1:])
    refused("holds 3 pictures", tmp_path / "many.tiff")
    Image.fromarray(np.full((20, 30), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    refused("not numbers", tmp_path / "nan.tiff")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    Image.new("L", (3000, 3000), 7).save(tmp_path / "bomb.png")
    monkeypatch.setattr("data_builders.images.radiograph.MAX_PIXELS", 1_000_000)
    with pytest.raises(UnreadableError, match="more pixels than any X-ray"):
        read_radiograph(tmp_path / "bomb.png")


def test_a_deflated_bomb_is_not_unpacked(dicom, monkeypatch):
    monkeypatch.setattr("data_builders.images.radiograph.MAX_PIXELS", 1_000)
    small, large = np.arange(600).reshape(30, 20), np.arange(40_000).reshape(200, 200)
    path = dicom(small)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(path)
    assert read_radiograph(path).shape == (30, 20)
    data.PatientComments = "x" * 60_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path)
    assert path.stat().st_size < 5000
    with pytest.raises(UnreadableError, match="unpacks to more bytes than any X-ray has"):
        read_radiograph(path)
    with pytest.raises(UnreadableError, match="more pixels than any X-ray has"):
        read_radiograph(dicom(large))


def test_squares_keep_proportions():
    picture = np.zeros((80, 40), np.float32)
    picture[20:60, 10:30] = 1.0
    small = take(picture, padding(80, 40, 32), 32)
    assert small.shape == (32, 32) and small[:, :7].max() == 0 and small[:, -7:].max() == 0
    assert small.sum() == pytest.approx(picture.sum() * (32 / 80) ** 2, rel=0.02)
    # Fine grain averages out instead of turning into a pattern.
    grain = np.float32(np.indices((400, 400)).sum(0) % 2)
    for size in (50, 73, 230):
        assert take(grain, padding(400, 400, size), size).std() < 0.06, size


@pytest.mark.parametrize("size", [64, 300])
def test_transforms_say_where_things_went(size):
    """A spot is found where the transform says, in a padded picture and in an aligned one."""
    y, x = np.mgrid[:150, :210]
    row, column = 60.3, 95.8
    spot = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 4.0**2)).astype(np.float32)
    turned = np.array([[70.0, 60.0], [130.0, 75.0], [97.0, 95.0], [72.0, 115.0], [118.0, 126.0]])
    for transform in (padding(150, 210, size), fitting(turned, size)):
        found = take(spot, transform, size)
        place = moved(np.array([[column, row]]), transform)[0]
        centre = (np.mgrid[:size, :size] * found).sum((1, 2)) / found.sum()
        np.testing.assert_allclose(centre[::-1], place, atol=0.1)


def test_alignment_is_the_best_similarity():
    from skimage.transform import SimilarityTransform

    places = PLACES * 128 - 0.5
    landmarks = np.array([[70.0, 60.0], [130.0, 75.0], [97.0, 95.0], [72.0, 115.0], [118.0, 126.0]])
    found, wanted = fitting(landmarks, 128), SimilarityTransform.from_estimate(places, landmarks)
    np.testing.assert_allclose(found, wanted.params[:2], atol=1e-8)


def test_photographs(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8).repeat(100, 0).repeat(100, 1)
    turn = Image.Exif()
    turn[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95, exif=turn)
    whole, step = read_photograph(tmp_path / "x.jpg")
    assert whole.shape == (800, 600, 3) and step == 1
    np.testing.assert_allclose(whole[50::100, 50::100].astype(int), np.rot90(pixels[50::100, 50::100], -1), atol=8)
    shrunk, step = read_photograph(tmp_path / "x.jpg", needed=90)
    assert shrunk.shape == (200, 150, 3) and step == 4
    Image.new("RGB", (30, 20), 9).save(tmp_path / "flat.png")
    with pytest.raises(UnreadableError, match="all pixels have one colour"):
        read_photograph(tmp_path / "flat.png")
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    with pytest.raises(UnreadableError, match="not a readable picture"):
        read_photograph(tmp_path / "no.jpg")
