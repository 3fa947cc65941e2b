"""X-rays from PNG, TIFF, JPEG and other files of pictures."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from synthetic_xray import HEAD, HEIGHT, WIDTH, alike, head

from data_builders.errors import UnreadableError
from data_builders.images import grey
from data_builders.images.radiograph import load_radiograph, opened, read_radiograph

V8 = np.uint8(np.rint(HEAD * 250))
V12 = np.uint16(np.rint(HEAD * 4000))
V16 = np.uint16(np.rint(HEAD * 60000))


def refused(words, path):
    with pytest.raises(UnreadableError, match=words) as caught:
        load_radiograph(path)
    assert str(path.parent) not in str(caught.value)


@pytest.fixture
def saved(tmp_path):
    def save(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return save


def by_pillow(array, form, **settings):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, form, **settings)
    return buffer.getvalue()


def tiff(array, **settings):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"metadata": None} | settings)
    return buffer.getvalue()


# Depths and forms.

PNGS = {
    "8": V8,
    "16": V16,
    "12 in 16": V12,
    "grey, alpha 16": np.stack([V12, np.full_like(V12, 65535)], -1),
    "RGB": np.stack([V8] * 3, -1),
    "RGB 16": np.stack([V12] * 3, -1),
    "RGBA 16": np.stack([V12] * 3 + [np.full_like(V12, 65535)], -1),
}


@pytest.mark.parametrize("name", PNGS)
def test_png(saved, name):
    image = load_radiograph(saved("x.png", imagecodecs.png_encode(PNGS[name])))
    assert alike(image.picture) > 0.9999 and image.remarks == ()
    assert len(np.unique(image.picture)) > 100


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"])
def test_tiff_of_any_depth(saved, order, photometric, dtype):
    if dtype[0] == "f":
        values = HEAD.astype(dtype)
    else:
        limits = np.iinfo(dtype)
        values = np.rint(limits.min + HEAD * 0.9 * (float(limits.max) - limits.min)).astype(dtype)
    if photometric == "miniswhite":
        values = -values if dtype[0] == "f" else ~values
    image = load_radiograph(saved("x.tif", tiff(values, byteorder=order, photometric=photometric)))
    assert alike(image.picture) > 0.999 and image.remarks == ()


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
@pytest.mark.parametrize("white", [0, 1])
def test_tiff_of_few_bits(saved, bits, white):
    levels = (1 << bits) - 1
    values = np.rint(HEAD * levels).astype(np.uint16)
    stored = values if white else levels - values
    rows = np.pad(stored, ((0, 0), (0, -WIDTH % 8)))
    digits = (rows[..., None] >> np.arange(bits)[::-1]) & 1
    packed = np.packbits(
        digits.reshape(HEIGHT, -1).astype(np.uint8)[:, : WIDTH * bits], axis=1
    ).tobytes()
    tags = [
        (256, WIDTH),
        (257, HEIGHT),
        (258, bits),
        (259, 1),
        (262, white),
        (273, 8),
        (277, 1),
        (278, HEIGHT),
    ]
    tags.append((279, len(packed)))
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", t, 4, 1, v) for t, v in tags
    )
    content = struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + directory + bytes(4)
    assert alike(read_radiograph(saved("x.tif", content)), values) > 0.999


@pytest.mark.parametrize(
    "settings",
    [
        dict(compression="lzw"),
        dict(compression="zlib", predictor=True),
        dict(compression="packbits"),
        dict(tile=(32, 48)),
        dict(rowsperstrip=7),
        dict(bigtiff=True),
        dict(compression="zlib", tile=(32, 32)),
    ],
)
def test_tiff_of_any_form(saved, settings):
    assert alike(read_radiograph(saved("x.tif", tiff(V16, **settings)))) > 0.9999


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("values", [V8, V12])
def test_tiff_of_three_channels(saved, planar, values):
    axis = -1 if planar == "contig" else 0
    grey_thrice = np.stack([values] * 3, axis)
    content = tiff(grey_thrice, photometric="rgb", planarconfig=planar)
    assert alike(read_radiograph(saved("x.tif", content))) > 0.9999
    colours = np.stack([values, values[::-1], values[:, ::-1]], axis)
    refused("in colours", saved("x.tif", tiff(colours, photometric="rgb", planarconfig=planar)))


def test_tiff_with_jpeg_palette_and_cmyk(saved):
    content = tiff(V8, compression="jpeg", compressionargs=dict(level=95))
    assert alike(read_radiograph(saved("x.tif", content))) > 0.999
    content = tiff(np.stack([V8] * 3, -1), compression="jpeg", photometric="rgb")
    assert alike(read_radiograph(saved("x.tif", content))) > 0.99
    ramp = np.tile(np.arange(256) * 257, (3, 1)).astype(np.uint16)
    content = tiff(255 - V8, photometric="palette", colormap=ramp[:, ::-1])
    assert alike(read_radiograph(saved("x.tif", content))) > 0.9999
    none = np.zeros_like(V8)
    cmyk = Image.fromarray(np.stack([none, none, none, 255 - V8], -1), "CMYK")
    for form in ("TIFF", "JPEG"):
        assert alike(read_radiograph(saved("x", by_pillow(cmyk, form)))) > 0.99


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_other_forms_are_known_by_content(saved, form, mode):
    image = Image.fromarray(V8).convert(mode)
    assert alike(read_radiograph(saved("x.dcm", by_pillow(image, form)))) > 0.99


def test_jpeg_of_other_kinds(saved):
    contents = [
        imagecodecs.jpeg8_encode(V12, bitspersample=12, level=95),
        imagecodecs.ljpeg_encode(V16),
        imagecodecs.jpegls_encode(V16),
        imagecodecs.jpeg2k_encode(V16, level=0, codecformat="jp2"),
    ]
    for content in contents:
        assert alike(read_radiograph(saved("x.jpg", content))) > 0.999
        refused("damaged", saved("x.jpg", content[: len(content) // 2]))


def test_previews_and_pages(saved):
    small = Image.fromarray(V8).resize((40, 48))
    mpo = by_pillow(
        Image.fromarray(V8).convert("RGB"),
        "MPO",
        save_all=True,
        append_images=[small.convert("RGB")],
    )
    assert read_radiograph(saved("x.jpg", mpo)).shape == V8.shape

    def pages(*described):
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as writer:
            for array, kind in described:
                writer.write(array, subfiletype=kind, metadata=None)
        return saved("x.tif", buffer.getvalue())

    little = np.asarray(small)
    for order in ([(V8, 0), (little, 1)], [(little, 1), (V8, 0)], [(little, 0), (V8, 0)]):
        assert alike(read_radiograph(pages(*order))) > 0.999
    refused("holds 2 pictures", pages((V8, 0), (V8, 0)))
    refused(
        "holds 3 pictures", saved("x.tif", tiff(np.stack([V8, V8, V8]), photometric="minisblack"))
    )
    frames = [Image.fromarray(V8), Image.fromarray(V8[::-1]), Image.fromarray(V8[:, ::-1])]
    for form in ("GIF", "WEBP", "PNG"):
        refused(
            "holds 3 pictures",
            saved("x", by_pillow(frames[0], form, save_all=True, append_images=frames[1:])),
        )


# What is outside, and values that are none.


def test_transparent_pixels_are_outside(saved):
    opaque = np.full_like(V16, 65535)
    opaque[:, :20] = 0
    values = V16 // 4
    values[:, :20] = 65535
    image = load_radiograph(saved("x.png", imagecodecs.png_encode(np.stack([values, opaque], -1))))
    assert image.remarks == (grey.TRANSPARENT,) and image.picture[:, :20].max() == 0
    assert alike(image.picture, where=np.s_[:, 20:]) > 0.999 and image.picture.max() == 1
    content = by_pillow(Image.fromarray(np.where(opaque > 0, V8, 255)), "PNG", transparency=255)
    assert load_radiograph(saved("x.png", content)).picture[:, :20].max() == 0
    rgba = np.stack([V8, V8, V8, np.uint8(opaque >> 8)], -1)
    assert (
        read_radiograph(saved("x.webp", by_pillow(rgba, "WEBP", lossless=True)))[:, :20].max() == 0
    )
    content = tiff(
        np.stack([values, opaque], -1), photometric="minisblack", extrasamples=["unassalpha"]
    )
    assert read_radiograph(saved("x.tif", content))[:, :20].max() == 0
    image = load_radiograph(saved("x.png", imagecodecs.png_encode(np.stack([V16, V16 * 0], -1))))
    assert image.remarks == (grey.ALL_TRANSPARENT,) and alike(image.picture) > 0.999


def test_values_that_are_no_numbers(saved):
    values = HEAD.astype(np.float32)
    values[3, 3:6] = np.nan, np.inf, -np.inf
    image = load_radiograph(saved("x.tif", tiff(values)))
    assert image.remarks == (grey.NOT_FINITE,) and image.picture[3, 3:6].max() == 0
    assert alike(image.picture, where=np.s_[4:]) > 0.999
    values[:10] = np.nan
    refused("8 % of its pixels are not numbers", saved("x.tif", tiff(values)))


def test_white_frames_do_not_decide_the_contrast(saved):
    for value, expected in ((255, 0), (160, 1)):
        framed = np.uint8(V8 // 2)
        framed[:12], framed[-12:], framed[:, :12], framed[:, -12:] = [value] * 4
        for content in (by_pillow(framed, "PNG"), by_pillow(framed, "JPEG", quality=95)):
            picture = read_radiograph(saved("x", content))
            inside = picture[20:-20, 20:-20]
            assert inside.max() > 0.95 and alike(inside, HEAD[20:-20, 20:-20]) > 0.99
            assert abs(picture[:8].mean() - expected) < 0.1


# Proportions and orientation.


def test_resolutions(saved):
    contents = [
        by_pillow(V8, "TIFF", x_resolution=100, y_resolution=50),
        tiff(V8, resolution=(100, 50), resolutionunit=1),
        tiff(V16, resolution=(100, 50), resolutionunit=3),
        by_pillow(V8, "PNG", dpi=(200, 100)),
        by_pillow(V8, "JPEG", dpi=(200, 100), quality=95),
        by_pillow(V8, "BMP", dpi=(200, 100)),
    ]
    png = by_pillow(V8, "PNG")
    chunk = b"pHYs" + struct.pack(">IIB", 2, 1, 0)
    contents.append(
        png[:33] + struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    )
    jpeg = bytearray(by_pillow(V8, "JPEG", quality=95))
    jpeg[13:18] = b"\0" + struct.pack(">HH", 2, 1)
    contents.append(bytes(jpeg))
    for content in contents:
        image = load_radiograph(saved("x", content))
        assert image.picture.shape == (2 * HEIGHT, WIDTH) and image.step == (0.5, 1.0)
        assert image.remarks == (grey.NOT_SQUARE,) and alike(image.picture, head(2 * HEIGHT)) > 0.99
    for across, down, remarks in (
        (300, 300, ()),
        (300, 301, ()),
        (900, 100, (grey.RATIO_ODD,)),
        (0, 0, ()),
    ):
        image = load_radiograph(saved("x.tif", tiff(V8, resolution=(across, down))))
        assert image.picture.shape == V8.shape and image.remarks == remarks


@pytest.mark.parametrize("turn", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_orientations(saved, form, turn):
    """A turn swaps the resolutions too."""
    exif = Image.Exif()
    exif[0x0112] = turn
    back = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
    }
    back |= {6: np.rot90, 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}
    stored = np.ascontiguousarray(back[turn](V8))
    if form == "TIFF":
        content = tiff(stored, extratags=[(274, 3, 1, turn, True)], resolution=(200, 100))
    else:
        content = by_pillow(stored, form, exif=exif, dpi=(200, 100), quality=95)
    image = load_radiograph(saved("x", content))
    step = (1.0, 1.0) if form == "WEBP" else (0.5, 1.0) if turn < 5 else (1.0, 0.5)
    assert image.step == step
    small = image.picture[:: round(1 / step[0]), :: round(1 / step[1])]
    assert small.shape == V8.shape and alike(small) > 0.98


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_odd_exif_is_ignored(saved, value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert (
        alike(read_radiograph(saved("x.jpg", by_pillow(V8, "JPEG", exif=exif, quality=95)))) > 0.99
    )
    broken = by_pillow(V8, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    assert alike(read_radiograph(saved("x.jpg", broken))) > 0.99


# Damage, strangers and bombs.


def test_checksums_and_ends(saved):
    png = by_pillow(V16, "PNG")
    for place in (20, 60, len(png) // 2, len(png) - 20, len(png) - 2):
        flipped = bytearray(png)
        flipped[place] ^= 4
        refused("damaged", saved("x.png", bytes(flipped)))
        with pytest.raises(UnreadableError), opened(saved("x.png", bytes(flipped))):
            pass
    chunk = b"tEXtabc"
    note = struct.pack(">I", 3) + chunk + struct.pack(">I", zlib.crc32(chunk) ^ 1)
    refused("checksum", saved("x.png", png[:33] + note + png[33:]))
    refused("end is missing|damaged", saved("x.png", png[:-12]))
    assert alike(read_radiograph(saved("x.png", png + b"trailing"))) > 0.999
    jpeg = by_pillow(V8, "JPEG", quality=95)
    refused("damaged", saved("x.jpg", jpeg[: len(jpeg) // 2]))
    assert alike(read_radiograph(saved("x.jpg", jpeg + bytes(100)))) > 0.99
    content = tiff(V16, compression="zlib", rowsperstrip=20)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        ends = [
            a + b
            for a, b in zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True)
        ]
    for end in ends:
        flipped = bytearray(content)
        flipped[end - 1] ^= 1  # of the strip's checksum
        refused("damaged", saved("x.tif", bytes(flipped)))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        place = file.pages[0].tags[257].valueoffset
    taller = content[:place] + struct.pack("<H", 2 * HEIGHT) + content[place + 2 :]
    refused("parts of its picture are missing", saved("x.tif", taller))
    for whole in (tiff(V16), tiff(V16, rowsperstrip=20), tiff(V16, compression="lzw")):
        refused("damaged", saved("x.tif", whole[:-2000]))


def test_strangers(saved, tmp_path):
    strangers = {
        b"": "an empty file",
        b"<!DOCTYPE html><html>": "web page",
        b"\n<?xml version='1.0'?>": "web page",
        b"%PDF-1.4": "PDF",
        b"PK\x03\x04": "an archive",
        b"\x1f\x8b\x08": "compressed",
        b"version https://git-lfs.github.com/spec/v1": "git lfs pull",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "HEIC",
        b"no picture": "not a readable picture",
        b"\xff\xd8\xff\xe0": "damaged|not a readable",
        b"II*\0\x08\0\0\0": "damaged",
    }
    for content, words in strangers.items():
        refused(words, saved("x.dcm", content) if b"no" not in content else saved("x.png", content))
    refused("no such file", tmp_path / "gone.png")
    refused("a folder", tmp_path)


def test_pictures_that_are_no_xray(saved):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    refused("a picture in colours", saved("x.png", by_pillow(noise, "PNG")))
    refused(
        "all pixels have the value 0", saved("x.png", by_pillow(Image.new("L", (30, 20)), "PNG"))
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "JPEG2000", "BMP"])
def test_a_bomb_is_not_unpacked(saved, monkeypatch, form):
    content = by_pillow(Image.new("L", (3000, 3000), 7), form)
    monkeypatch.setattr("data_builders.images.files.MAX_PIXELS", 1_000_000)
    refused("more pixels than any X-ray", saved("x", content))


def test_lack_of_memory_is_not_damage(saved, monkeypatch):
    def lacking(*_):
        raise MemoryError

    monkeypatch.setattr(imagecodecs, "png_decode", lacking)
    with pytest.raises(MemoryError):
        read_radiograph(saved("x.png", by_pillow(V8, "PNG")))


def test_what_may_not_be_read_is_said(saved, monkeypatch):
    path = saved("x.png", by_pillow(V8, "PNG"))

    def forbidden(*_, **__):
        raise PermissionError

    monkeypatch.setattr("builtins.open", forbidden)
    refused("can't be read; change its permissions", path)
