"""Photographs of faces from files of all kinds."""

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from data_builders.errors import UnreadableError
from data_builders.images.photograph import read_photograph

Y, X = np.mgrid[:200, :160]
FACE = np.stack([X, Y, (X + Y) // 2], -1).astype(np.uint8)


@pytest.fixture
def saved(tmp_path):
    def save(image, form, name="x", **settings):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(tmp_path / name, form, **settings)
        return tmp_path / name

    return save


def assert_alike(path, expected, tolerance=3):
    pixels, step = read_photograph(path)
    assert step == 1 and pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < tolerance


def test_turned_and_shrunk(tmp_path):
    pixels = (
        np.random.default_rng(0)
        .integers(0, 256, (6, 8, 3))
        .astype(np.uint8)
        .repeat(100, 0)
        .repeat(100, 1)
    )
    turn = Image.Exif()
    turn[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95, exif=turn)
    whole, step = read_photograph(tmp_path / "x.jpg")
    assert whole.shape == (800, 600, 3) and step == 1
    np.testing.assert_allclose(
        whole[50::100, 50::100].astype(int), np.rot90(pixels[50::100, 50::100], -1), atol=8
    )
    shrunk, step = read_photograph(tmp_path / "x.jpg", needed=90)
    assert shrunk.shape == (200, 150, 3) and step == 4


def test_previews_and_films(saved):
    image = Image.fromarray(FACE)
    assert_alike(saved(image, "MPO", save_all=True, append_images=[image.resize((80, 100))]), FACE)
    for form in ("GIF", "WEBP", "PNG"):
        path = saved(
            image, form, save_all=True, append_images=[image.rotate(90), image.rotate(180)]
        )
        with pytest.raises(UnreadableError, match="holds 3 pictures; one photograph is expected"):
            read_photograph(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000"])
def test_forms(saved, form):
    assert_alike(saved(FACE, form), FACE)
    grey = FACE[..., 2]
    assert_alike(saved(grey, form), np.stack([grey] * 3, -1))


def test_modes(saved, tmp_path):
    assert_alike(saved(Image.fromarray(FACE).convert("CMYK"), "JPEG", quality=95), FACE)
    assert_alike(saved(Image.fromarray(FACE).convert("CMYK"), "TIFF"), FACE)
    assert_alike(saved(Image.fromarray(FACE).quantize(256), "PNG"), FACE, 8)
    assert_alike(
        saved(FACE[..., 2].astype(np.uint16) * 257, "PNG"), np.stack([FACE[..., 2]] * 3, -1)
    )
    deep = FACE.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    assert_alike(tmp_path / "deep.tif", FACE)
    tifffile.imwrite(tmp_path / "white.tif", 255 - FACE[..., 2], photometric="miniswhite")
    assert_alike(tmp_path / "white.tif", np.stack([FACE[..., 2]] * 3, -1))


def test_transparent_parts_are_white(saved):
    opaque = np.full(X.shape, 255, np.uint8)
    opaque[:50] = 0
    expected = np.where(opaque[..., None], FACE, 255)
    for form in ("PNG", "TIFF"):
        assert_alike(saved(np.concatenate([FACE, opaque[..., None]], -1), form), expected, 1)


def test_profiles(saved):
    """A profile of another space changes the colours; a damaged one is ignored."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_alike(saved(FACE, "PNG", icc_profile=srgb), FACE, 0.01)
    assert_alike(saved(FACE, "PNG", icc_profile=b"damaged" * 40), FACE, 0.01)
    lab = Image.fromarray(FACE)
    assert_alike(saved(lab, "PNG", icc_profile=_wide(srgb)), FACE, 100)
    assert (
        np.abs(
            read_photograph(saved(lab, "PNG", icc_profile=_wide(srgb)))[0].astype(int) - FACE
        ).max()
        > 20
    )


def _wide(srgb):
    """sRGB's profile with its red and green exchanged, under another name."""
    content = bytearray(
        srgb.replace(b"sRGB", b"Wide").replace(
            "sRGB".encode("utf-16-be"), "Wide".encode("utf-16-be")
        )
    )
    red, green = content.index(b"rXYZ"), content.index(b"gXYZ")
    content[red : red + 4], content[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(content)


def test_refusals(saved, tmp_path):
    flat = saved(Image.new("RGB", (30, 20), 9), "PNG")
    with pytest.raises(UnreadableError, match="all pixels have one colour"):
        read_photograph(flat)
    contents = {
        "no.jpg": (b"no picture", "not a readable picture"),
        "x.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "convert it to JPEG"),
        "x.dcm": (bytes(128) + b"DICM", "a DICOM file"),
    }
    for name, (content, words) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableError, match=words):
            read_photograph(tmp_path / name)
    path = saved(FACE, "PNG")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UnreadableError, match="checksum"):
        read_photograph(path)
    path = saved(FACE, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UnreadableError, match="damaged"):
        read_photograph(path)
