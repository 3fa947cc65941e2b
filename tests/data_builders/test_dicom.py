"""X-rays from DICOM files as vendors, archives and exporters write them."""

import pathlib
import warnings

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_files
from pydicom.encaps import encapsulate
from synthetic_xray import HEAD, HEIGHT, WIDTH, alike, head

from data_builders.errors import UnreadableError
from data_builders.images import grey
from data_builders.images.radiograph import load_radiograph, read_radiograph
from data_builders.rendering import ct

V12 = np.rint(HEAD * 4000)


def dataset(values, dtype=np.uint16, **changes):
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid.generate_uid()
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * np.dtype(dtype).itemsize
    data.BitsAllocated = data.BitsStored = bits
    data.PixelRepresentation = int(np.dtype(dtype).kind == "i")
    data.PatientName = "Doe^Jane"
    data.PixelData = np.ascontiguousarray(values.astype(dtype)).tobytes()
    for key, value in changes.items():
        if value is None:
            delattr(data, key)
        elif isinstance(value, tuple):
            data.add_new(key, *value)
        else:
            setattr(data, key, value)
    if "BitsStored" in data and "HighBit" not in data:
        data.HighBit = data.BitsStored - 1
    return data


@pytest.fixture
def written(tmp_path):
    def write(data, name="x.dcm", **settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data.save_as(tmp_path / name, **{"enforce_file_format": True} | settings)
        return tmp_path / name

    return write


def lut(descriptor, data, vr="US", data_vr="OW"):
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", vr, descriptor)
    item.add_new("LUTData", data_vr, data)
    return item


def words(values):
    return np.asarray(values).astype("<u2").tobytes()


def octets(values):
    return np.asarray(values).astype("u1").tobytes()


LINE = np.arange(4096)
CURVE = np.rint(4095 * (LINE / 4095) ** 0.8)

TABLES = {
    "12 bit": dict(VOILUTSequence=[lut([4096, 0, 12], words(LINE))]),
    "8 bit in words": dict(VOILUTSequence=[lut([4096, 0, 8], words(LINE // 16))]),
    "8 bit packed": dict(VOILUTSequence=[lut([4096, 0, 8], octets(LINE // 16))]),
    "8 bit packed, odd": dict(
        VOILUTSequence=[lut([4095, 0, 8], octets(LINE[:4095] // 16) + b"\0")]
    ),
    "8 bit packed in US": dict(
        VOILUTSequence=[
            lut([4096, 0, 8], np.frombuffer(octets(LINE // 16), "<u2").tolist(), data_vr="US")
        ]
    ),
    "list of US": dict(VOILUTSequence=[lut([4096, 0, 12], LINE.tolist(), data_vr="US")]),
    "8 bit said, 16 bit stored": dict(VOILUTSequence=[lut([4096, 0, 8], words(LINE * 16))]),
    "65536 entries": dict(VOILUTSequence=[lut([0, 0, 16], words(np.arange(65536)))]),
    "first one fits not": dict(
        VOILUTSequence=[lut([256, 0, 8], words(np.arange(256))), lut([4096, 0, 12], words(LINE))]
    ),
    "modality": dict(ModalityLUTSequence=[lut([4096, 0, 12], words(LINE))]),
    "modality, then voi": dict(
        ModalityLUTSequence=[lut([4096, 0, 16], words(LINE * 8))],
        VOILUTSequence=[lut([32768, 0, 16], words(np.arange(32768)))],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(written, name):
    data = dataset(V12, BitsStored=12, **TABLES[name])
    image = load_radiograph(written(data))
    assert alike(image.picture) > 0.999 and image.remarks == ()


def test_a_table_bends_as_by_hand(written):
    bent = read_radiograph(written(dataset(V12, VOILUTSequence=[lut([4096, 0, 12], words(CURVE))])))
    by_hand = CURVE[V12.astype(int)]
    assert alike(bent, by_hand) > 0.99999 > alike(bent)


@pytest.mark.parametrize(("vr", "first"), [("SS", -2048), ("US", 63488)])
@pytest.mark.parametrize("kind", ["ModalityLUTSequence", "VOILUTSequence"])
def test_a_table_that_begins_below_zero(written, vr, first, kind):
    table = lut([4096, first, 12], words(LINE), vr=vr)
    data = dataset(V12 - 2048, np.int16, **{kind: [table]})
    image = load_radiograph(written(data))
    assert alike(image.picture) > 0.999 and image.remarks == ()


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        (dict(VOILUTSequence=[lut([4096, 0, 12], words(LINE[:4050]))]), grey.TABLE_SHORT),
        (dict(VOILUTSequence=[lut([4096, 0, 12], b"")]), grey.WINDOW),
        (dict(VOILUTSequence=[lut([256, 0, 8], words(np.arange(256)))]), grey.WINDOW),
        (dict(ModalityLUTSequence=[lut([4096, 0, 12], b"")]), grey.MODALITY_TABLE),
        (dict(ModalityLUTSequence=[lut([256, 0, 8], words(range(256)))]), grey.MODALITY_TABLE),
        (dict(WindowCenter=128, WindowWidth=256), grey.WINDOW),
        (dict(WindowCenter=512, WindowWidth=1024), grey.WINDOW),
        (dict(WindowCenter=1023, WindowWidth=2047), grey.WINDOW),
        (dict(WindowCenter=2000, WindowWidth=0), grey.WINDOW),
        (dict(WindowCenter=2000, WindowWidth=-400), grey.WINDOW),
        (dict(WindowCenter=2000, WindowWidth=1), grey.WINDOW),
        (dict(WindowCenter=40, WindowWidth=400), grey.WINDOW),
        (dict(WindowCenter=60000, WindowWidth=1000), grey.WINDOW),
        (dict(WindowCenter=1e9, WindowWidth=2e12), grey.WINDOW),
        (dict(WindowCenter=("LO", "nan"), WindowWidth=("LO", "nan")), grey.WINDOW),
        (dict(RescaleSlope=0, RescaleIntercept=0), grey.RESCALE),
        (dict(RescaleSlope=("DS", ""), RescaleIntercept=("DS", "")), grey.RESCALE),
    ],
)
def test_what_cannot_be_meant_gives_way_to_a_robust_window(written, changes, remark):
    image = load_radiograph(written(dataset(V12, BitsStored=12, **changes)))
    np.testing.assert_allclose(image.picture, read_radiograph(written(dataset(V12))), atol=0.01)
    assert image.remarks == (remark,)


@pytest.mark.parametrize(
    "changes",
    [
        dict(WindowCenter=2048, WindowWidth=4096),
        dict(WindowCenter=2048, WindowWidth=4096, VOILUTFunction=("CS", "")),
        dict(WindowCenter=2048, WindowWidth=4096, VOILUTFunction=("CS", "ODD")),
        dict(WindowCenter=("LO", "2048,0"), WindowWidth=("LO", "4096,0")),
        dict(WindowCenter=[40, 2048], WindowWidth=[80, 4096]),
        dict(WindowCenter=32768, WindowWidth=65536),
        dict(
            WindowCenter=0.5,
            WindowWidth=1.024,
            RescaleSlope=1 / 4000,
            VOILUTFunction="LINEAR_EXACT",
        ),
        dict(RescaleSlope=-1, RescaleIntercept=4000, PhotometricInterpretation="MONOCHROME1"),
        dict(RescaleSlope=1e6, RescaleIntercept=-1e9),
        dict(PresentationLUTShape="IDENTITY", PixelIntensityRelationshipSign=-1),
    ],
)
def test_headers_that_are_fine(written, changes):
    image = load_radiograph(written(dataset(V12, BitsStored=12, **changes)))
    assert alike(image.picture) > 0.999 and image.remarks == ()


def test_windows_bend_as_by_hand(written):
    narrow = read_radiograph(written(dataset(V12, WindowCenter=1800, WindowWidth=2000)))
    assert alike(narrow, np.clip((V12 - 1799.5) / 1999 + 0.5, 0, 1)) > 0.99999
    soft = dataset(V12, WindowCenter=1800, WindowWidth=2000, VOILUTFunction="SIGMOID")
    by_hand = 1 / (1 + np.exp(-4 * (V12 - 1800) / 2000))
    assert alike(read_radiograph(written(soft)), by_hand) > 0.9999


INSIDE = np.s_[:, 22:]


@pytest.mark.parametrize(
    ("value", "dtype", "changes"),
    [
        (-2000, np.int16, {}),
        (-32768, np.int16, {}),
        (65535, np.uint16, {}),
        (0, np.uint16, dict(PhotometricInterpretation="MONOCHROME1")),
        (0, np.uint16, {}),
    ],
)
@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("strip", [np.s_[:, :20], np.s_[-15:]])
def test_padding(written, value, dtype, changes, tagged, strip):
    values = V12 / 4 + 2000
    if changes:
        values = 6000 - values
    values[strip] = value
    tag = dict(PixelPaddingValue=value) if tagged else {}
    image = load_radiograph(written(dataset(values, dtype, **changes, **tag)))
    blank = np.zeros_like(HEAD, bool)
    blank[strip] = True
    assert image.picture[blank].max() == 0 and image.remarks == (grey.PADDING,)
    assert alike(image.picture, where=~blank) > 0.99
    spread = np.percentile(image.picture[~blank], [1, 99])
    assert spread[0] < 0.1 and spread[1] > 0.9


def test_padding_up_to_a_limit_and_with_the_other_sign(written):
    values = V12 + 1000
    values[:, :10], values[:, 10:20] = 3, 40
    data = dataset(values, PixelPaddingValue=0, PixelPaddingRangeLimit=50)
    image = load_radiograph(written(data))
    assert image.picture[:, :20].max() == 0 and image.picture[INSIDE].min() < 0.05
    values = V12 - 1000
    values[:, :20] = -1200
    data = dataset(values, np.int16, PixelPaddingValue=("US", 65536 - 1200))
    image = load_radiograph(written(data))
    assert image.picture[:, :20].max() == 0 and image.remarks == (grey.PADDING,)
    limits = dict(PixelPaddingValue=("US", 64000), PixelPaddingRangeLimit=("US", 64500))
    image = load_radiograph(written(dataset(values, np.int16, **limits)))
    assert image.picture[:, :20].max() == 0 and image.remarks == (grey.PADDING,)
    data = dataset(
        np.where(values == -1200, 63536, values + 1000),
        PixelPaddingValue=("SS", -2000),
        BitsStored=12,
    )
    image = load_radiograph(written(data))
    assert image.picture[:, :20].max() == 0 and alike(image.picture, where=INSIDE) > 0.99


def test_padding_takes_nothing_of_the_patient(written):
    """The value of padding occurs in bone too; one that occurs nowhere changes nothing."""
    values = V12.copy()
    values[50:54, 60:64] = 4095
    values[:, :20] = 4095
    image = load_radiograph(written(dataset(values, PixelPaddingValue=4095)))
    assert image.picture[:, :20].max() == 0 and image.picture[50:54, 60:64].min() == 1
    plain = load_radiograph(written(dataset(V12)))
    unused = load_radiograph(written(dataset(V12, PixelPaddingValue=4095)))
    np.testing.assert_array_equal(plain.picture, unused.picture)
    assert unused.remarks == ()
    odd = load_radiograph(written(dataset(V12, PixelPaddingValue=0, PixelPaddingRangeLimit=65535)))
    np.testing.assert_array_equal(plain.picture, odd.picture)
    assert odd.remarks == (grey.PADDING_ODD,)


def test_a_collimator_that_is_bright_and_noisy_does_not_decide_the_contrast(written):
    values = V12 / 4 + 1000
    noise = np.random.default_rng(0).normal(3900, 20, values.shape)
    values[:14], values[:, :14] = noise[:14], noise[:, :14]
    values = cv2.GaussianBlur(values, (0, 0), 0.7)
    picture = read_radiograph(written(dataset(values)))
    assert (
        np.percentile(picture[20:, 20:], 99) > 0.85
        and alike(picture[20:, 20:], HEAD[20:, 20:]) > 0.99
    )
    # The bright bone itself, without a gap below it, is no frame.
    plain = read_radiograph(written(dataset(V12)))
    assert alike(plain) > 0.999


def test_what_is_outside_of_a_collimator_does_not_decide_the_contrast(written):
    values = V12 / 4 + 1000
    values[:, :30] = np.random.default_rng(0).uniform(0, 60000, (HEIGHT, 30))
    edges = dict(
        CollimatorShape="RECTANGULAR",
        CollimatorLeftVerticalEdge=31,
        CollimatorRightVerticalEdge=WIDTH,
        CollimatorUpperHorizontalEdge=1,
        CollimatorLowerHorizontalEdge=HEIGHT,
    )
    picture = read_radiograph(written(dataset(values, **edges)))
    assert alike(picture, where=np.s_[:, 30:]) > 0.99 and picture[:, 30:].max() == 1


@pytest.mark.parametrize(
    "shape",
    [
        dict(
            ShutterShape="RECTANGULAR",
            ShutterLeftVerticalEdge=21,
            ShutterRightVerticalEdge=90,
            ShutterUpperHorizontalEdge=11,
            ShutterLowerHorizontalEdge=110,
        ),
        dict(ShutterShape="CIRCULAR", CenterOfCircularShutter=[60, 50], RadiusOfCircularShutter=45),
        dict(
            ShutterShape="POLYGONAL",
            VerticesOfThePolygonalShutter=[11, 21, 11, 90, 110, 90, 110, 21],
        ),
    ],
)
def test_shutters(written, shape):
    y, x = np.mgrid[1 : HEIGHT + 1, 1 : WIDTH + 1]
    inside = (y >= 11) & (y <= 110) & (x >= 21) & (x <= 90)
    if shape["ShutterShape"] == "CIRCULAR":
        inside = (y - 60) ** 2 + (x - 50) ** 2 <= 45**2
    values = np.where(
        inside, V12 / 4 + 1000, np.random.default_rng(0).uniform(0, 60000, HEAD.shape)
    )
    image = load_radiograph(written(dataset(values, **shape)))
    assert image.remarks == (grey.SHUTTER,) and image.picture[~inside].max() == 0
    assert alike(image.picture, where=inside) > 0.99 and image.picture[inside].max() == 1


def test_a_shutter_that_hides_all_is_ignored(written):
    shape = dict(
        ShutterShape="CIRCULAR", CenterOfCircularShutter=[900, 900], RadiusOfCircularShutter=5
    )
    image = load_radiograph(written(dataset(V12, **shape)))
    assert image.remarks == (grey.SHUTTER_ODD,) and alike(image.picture) > 0.999


@pytest.mark.parametrize(
    ("changes", "sign", "remark"),
    [
        (dict(PhotometricInterpretation="MONOCHROME1"), -1, None),
        (dict(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"), -1, None),
        (dict(PresentationLUTShape="INVERSE"), 1, grey.POLARITY_CONFLICT),
        (dict(PhotometricInterpretation=None), 1, grey.POLARITY_MISSING),
        (dict(PixelIntensityRelationshipSign=1), 1, grey.POLARITY_CONFLICT),
        (
            dict(PixelIntensityRelationshipSign=1, PresentationIntentType="FOR PROCESSING"),
            -1,
            grey.POLARITY_TURNED,
        ),
        (dict(PixelIntensityRelationshipSign=-1, PresentationIntentType="FOR PROCESSING"), 1, None),
        (
            dict(
                PixelIntensityRelationshipSign=1,
                PresentationIntentType="FOR PROCESSING",
                RescaleSlope=-1,
                RescaleIntercept=4095,
            ),
            -1,
            None,
        ),
    ],
)
def test_polarity(written, changes, sign, remark):
    """In the last case a negative slope has turned the values already."""
    image = load_radiograph(written(dataset(V12, **changes)))
    assert sign * alike(image.picture) > 0.999
    assert image.remarks == ((remark,) if remark else ())
    turned = read_radiograph(written(dataset(V12, **changes)), inverted=True)
    assert sign * alike(turned) < -0.999


OVERLAY = np.zeros(HEAD.shape, np.uint16)
OVERLAY[10:30, 20:80:3] = 1


@pytest.mark.parametrize(
    ("values", "dtype", "changes", "remarks"),
    [
        (V12 * 16, np.uint16, dict(BitsStored=12, HighBit=15), ()),
        (V12, np.uint16, dict(BitsStored=12, HighBit=15), (grey.BITS,)),
        (V12 * 16, np.uint16, dict(BitsStored=12), (grey.BITS,)),
        (V12 + OVERLAY * 4096, np.uint16, dict(BitsStored=12), ()),
        (V12 + OVERLAY * 32768, np.uint16, dict(BitsStored=12), ()),
        (V12 * 4, np.uint16, dict(BitsStored=12), (grey.BITS,)),
        (V12, np.uint16, dict(BitsStored=10), (grey.BITS,)),
        ((V12 - 2000) % 4096, np.uint16, dict(BitsStored=12, PixelRepresentation=1), ()),
        (V12, np.uint16, dict(BitsStored=12, PixelRepresentation=1), (grey.BITS,)),
        (V12 - 2000, np.int16, dict(BitsStored=12), ()),
        (V12, np.uint16, dict(BitsStored=20), (grey.BITS,)),
        (V12, np.uint16, dict(BitsStored=12, HighBit=7), (grey.BITS,)),
        (V12, np.uint16, dict(BitsStored=None, HighBit=11), ()),
        (V12, np.uint16, dict(PixelRepresentation=None), ()),
        (
            V12,
            np.uint16,
            dict(SamplesPerPixel=None, BitsAllocated=None, PixelData=("OW", words(V12))),
            (),
        ),
        (V12 * 100000, np.uint32, {}, ()),
        ((V12 - 2000) * 100000, np.int32, {}, ()),
        (HEAD * 250, np.uint8, {}, ()),
    ],
)
def test_bits(written, values, dtype, changes, remarks):
    image = load_radiograph(written(dataset(values, dtype, **changes)))
    assert alike(image.picture) > 0.998
    assert image.remarks == remarks


def test_overlays_in_the_pixels_leave_no_trace(written):
    values = V12.copy()
    values[10:30, 20:80] = 0
    data = dataset(values + OVERLAY * 32768 * (values == 0), BitsStored=12)
    data.add_new(0x60000102, "US", 15)
    assert read_radiograph(written(data))[10:30, 20:80].max() == 0


def test_twelve_bits_packed_one_bit_and_floats(written):
    first, second = V12.astype(np.uint16).ravel().reshape(-1, 2).T
    packed = np.stack([first & 255, first >> 8 | (second & 15) << 4, second >> 4], 1).astype(
        np.uint8
    )
    data = dataset(V12, BitsAllocated=12, BitsStored=12, PixelData=packed.tobytes())
    assert alike(read_radiograph(written(data))) > 0.999
    binary = HEAD > 0.4
    bits = np.packbits(binary, bitorder="little").tobytes()
    data = dataset(V12, BitsAllocated=1, BitsStored=1, PixelData=bits)
    np.testing.assert_array_equal(read_radiograph(written(data)), binary)
    for name, dtype in (("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")):
        values = HEAD.astype(dtype)
        values[5, 5] = np.nan
        data = dataset(V12, PixelData=None, BitsAllocated=8 * values.itemsize)
        setattr(data, name, values.tobytes())
        image = load_radiograph(written(data))
        assert alike(image.picture) > 0.999 and image.remarks == (grey.NOT_FINITE,)


@pytest.mark.parametrize(
    ("stated", "shape", "remarks"),
    [
        (dict(PixelSpacing=[0.2, 0.1]), (240, 100), (grey.NOT_SQUARE,)),
        (dict(ImagerPixelSpacing=[0.1, 0.2]), (120, 200), (grey.NOT_SQUARE,)),
        (dict(NominalScannedPixelSpacing=[0.3, 0.2]), (180, 100), (grey.NOT_SQUARE,)),
        (dict(PixelAspectRatio=[2, 1]), (240, 100), (grey.NOT_SQUARE,)),
        (dict(PixelSpacing=("LO", "0,2\\0,1")), (240, 100), (grey.NOT_SQUARE,)),
        (dict(PixelSpacing=[0.1, 0.1], PixelAspectRatio=[2, 1]), (120, 100), (grey.RATIOS_DIFFER,)),
        (dict(PixelSpacing=[0, 0], PixelAspectRatio=[2, 1]), (240, 100), (grey.NOT_SQUARE,)),
        (dict(PixelSpacing=[0.143, 0.1435]), (120, 100), ()),
        (dict(PixelSpacing=[1, 9]), (120, 100), (grey.RATIO_ODD,)),
        (dict(PixelSpacing=[0.1, 0.1], ImagerPixelSpacing=[0.11, 0.11]), (120, 100), ()),
    ],
)
def test_pixels_that_are_not_square(written, stated, shape, remarks):
    image = load_radiograph(written(dataset(V12, **stated)))
    assert image.picture.shape == shape and image.remarks == remarks
    assert image.step == (HEIGHT / shape[0], WIDTH / shape[1])
    assert alike(image.picture, head(*shape)) > 0.98


def test_step_leads_back_to_the_file(written):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    spot = np.exp(-((y - 40.3) ** 2 + (x - 60.8) ** 2) / 18)
    image = load_radiograph(written(dataset(spot * 60000, PixelSpacing=[0.25, 0.1])))
    height, width = image.picture.shape
    mass = image.picture.sum()
    place = (np.mgrid[:height, :width] * image.picture).sum((1, 2)) / mass
    np.testing.assert_allclose((place + 0.5) * image.step - 0.5, (40.3, 60.8), atol=0.1)


def test_enhanced_objects_of_one_frame(written):
    def group(**macros):
        item = pydicom.Dataset()
        for name, fields in macros.items():
            inner = pydicom.Dataset()
            for key, value in fields.items():
                setattr(inner, key, value)
            setattr(item, name, [inner])
        return [item]

    data = dataset(
        4000 - V12,
        NumberOfFrames=1,
        SharedFunctionalGroupsSequence=group(
            PixelMeasuresSequence=dict(PixelSpacing=[0.2, 0.1]),
            PixelValueTransformationSequence=dict(RescaleSlope=-1, RescaleIntercept=4000),
        ),
        PerFrameFunctionalGroupsSequence=group(
            FrameVOILUTSequence=dict(WindowCenter=2000, WindowWidth=4000)
        ),
    )
    image = load_radiograph(written(data))
    assert image.picture.shape == (240, 100) and alike(image.picture[::2]) > 0.98


FORMS = {
    "no preamble": dict(preamble=False),
    "implicit": dict(implicit_vr=True, little_endian=True),
    "big": dict(implicit_vr=False, little_endian=False),
}


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
@pytest.mark.parametrize("meta", ["whole", "without preamble", "none", "no syntax"])
def test_encodings(written, tmp_path, syntax, meta):
    little = syntax != uid.ExplicitVRBigEndian
    values = V12.astype("<u2" if little else ">u2")
    table = (LINE * 16).astype("<u2" if little else ">u2").tobytes()
    data = dataset(
        V12,
        PixelData=values.tobytes(),
        VOILUTSequence=[lut([4096, 0, 16], table)],
        SOPClassUID=None,
    )
    data["PixelData"].VR = "OW"
    if meta == "whole":
        data.file_meta.TransferSyntaxUID = syntax
        path = written(data, name="IM0001")
    else:
        data.file_meta = pydicom.dataset.FileMetaDataset()
        settings = dict(
            implicit_vr=syntax.is_implicit_VR, little_endian=little, enforce_file_format=False
        )
        path = written(data, name="picture.png", **settings)
        content = path.read_bytes()
        content = content[132:] if content[128:132] == b"DICM" else content
        prefix = {"none": b"", "without preamble": b"", "no syntax": bytes(128) + b"DICM"}[meta]
        path.write_bytes(prefix + content)
    image = load_radiograph(path)
    assert alike(image.picture) > 0.999 and image.remarks == ()


def compressed(name, values):
    encode = {
        uid.JPEGLSLossless: imagecodecs.jpegls_encode,
        uid.JPEGLosslessSV1: imagecodecs.ljpeg_encode,
        uid.JPEGExtended12Bit: lambda v: imagecodecs.jpeg8_encode(v, bitspersample=12, level=95),
        uid.JPEG2000Lossless: lambda v: imagecodecs.jpeg2k_encode(v, codecformat="j2k", level=0),
    }[name]
    return encode(np.ascontiguousarray(values.astype(np.uint16)))


@pytest.mark.parametrize(
    "syntax",
    [
        uid.JPEGLSLossless,
        uid.JPEGLosslessSV1,
        uid.JPEGExtended12Bit,
        uid.JPEG2000Lossless,
        uid.RLELossless,
    ],
)
@pytest.mark.parametrize("stated", [True, False])
def test_compressed_files(written, syntax, stated):
    """Read with and without the syntax; refused when cut off, of two frames or another size."""
    data = dataset(V12, BitsStored=12)
    if syntax == uid.RLELossless:
        data.compress(syntax, encoding_plugin="pydicom")
        code = None
    else:
        code = compressed(syntax, V12)
        data.PixelData = encapsulate([code])
        data.file_meta.TransferSyntaxUID = syntax
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    path = written(data)
    if not stated:
        content = path.read_bytes()
        true = str(data.file_meta.TransferSyntaxUID).encode()
        other = str(uid.ExplicitVRLittleEndian).encode().ljust(len(true) + len(true) % 2, b"\0")
        path.write_bytes(content.replace(true.ljust(len(other), b"\0"), other, 1))
    assert alike(read_radiograph(path)) > 0.999
    if code is None or not stated:
        return
    bad = [[code[: len(code) // 2]], [code, code]]
    for frames, words in zip(bad, ("cut off|damaged", "2 frames"), strict=True):
        data.PixelData = encapsulate(frames)
        data["PixelData"].is_undefined_length = True
        with pytest.raises(UnreadableError, match=words):
            read_radiograph(written(data))
    data.PixelData, data.Rows = encapsulate([code]), HEIGHT - 20
    data["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadableError, match="another size"):
        read_radiograph(written(data))


def test_deflated_and_wrongly_stated_as_compressed(written):
    data = dataset(V12)
    data.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    path = written(data)
    assert alike(read_radiograph(path)) > 0.999
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UnreadableError, match="cut off"):
        read_radiograph(path)
    path = written(dataset(V12))
    wrong = str(uid.JPEGBaseline8Bit).encode()
    right = str(uid.ExplicitVRLittleEndian).encode().ljust(20, b"\0")
    content = path.read_bytes()
    place = content.index(right.rstrip(b"\0"))
    assert len(wrong) > 19 and content[place + 19 : place + 20] == b"\0"
    data = dataset(V12)
    data.file_meta.TransferSyntaxUID = uid.UID("1.2.3.4.5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = written(data, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert alike(read_radiograph(path)) > 0.999


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR"])
def test_grey_in_three_channels(written, photometric):
    values = np.rint(HEAD * 250).astype(np.uint8)
    half = np.full((HEIGHT, WIDTH // 2), 128)
    content = {
        "RGB": np.stack([values] * 3, -1),
        "YBR_FULL": np.stack([values, np.full_like(values, 128), np.full_like(values, 128)], -1),
        "YBR_FULL_422": np.stack([values[:, ::2], values[:, 1::2], half, half], -1),
        "PALETTE COLOR": values,
    }[photometric]
    data = dataset(
        values,
        np.uint8,
        PhotometricInterpretation=photometric,
        PixelData=content.astype("u1").tobytes(),
    )
    data.SamplesPerPixel, data.PlanarConfiguration = 3, 0
    if photometric == "PALETTE COLOR":
        data.SamplesPerPixel = 1
        for colour in ("Red", "Green", "Blue"):
            setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
            setattr(data, f"{colour}PaletteColorLookupTableData", words(np.arange(256) * 257))
    assert alike(read_radiograph(written(data))) > 0.999
    if photometric == "PALETTE COLOR":
        data.BluePaletteColorLookupTableData = words(np.arange(256)[::-1] * 257)
    else:
        data.PixelData = (
            np.random.default_rng(0).integers(0, 256, content.shape, np.uint8).tobytes()
        )
    with pytest.raises(UnreadableError, match="in colours"):
        read_radiograph(written(data))


def test_icons_and_overlays_are_no_pictures(written):
    icon = dataset(np.zeros((8, 8)), np.uint8)
    del icon.file_meta
    data = dataset(V12, IconImageSequence=[icon])
    data.add_new(0x60000010, "US", HEIGHT)
    data.add_new(0x60000011, "US", WIDTH)
    data.add_new(0x60003000, "OW", bytes(HEIGHT * WIDTH // 8))
    assert alike(read_radiograph(written(data))) > 0.999
    del data.PixelData
    with pytest.raises(UnreadableError, match="without a picture"):
        read_radiograph(written(data))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(NumberOfFrames=3), "a DICOM file of 3 frames"),
        (dict(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "a DICOM file in colours"),
        (dict(PixelData=b"\0" * 100), "damaged, or in a form that can't be decoded"),
        (dict(PixelData=bytes(4 * HEIGHT * WIDTH)), "more pixels than its header says"),
        (dict(Modality="CT"), "ct_heads"),
        (dict(Modality="MR"), "an MR slice"),
        (dict(SOPClassUID=uid.CTImageStorage), "a CT slice"),
        (dict(PixelData=None, SOPClassUID=uid.EncapsulatedPDFStorage), "Encapsulated PDF Storage"),
        (dict(PixelData=None, SOPClassUID=uid.RTStructureSetStorage), "RT Structure Set"),
        (dict(Rows=0), "not state its size"),
        (dict(Rows=WIDTH, Columns=HEIGHT), "rows don't fit together"),
        (dict(BitsAllocated=24), "24 bits"),
        (dict(PixelData=bytes(2 * HEIGHT * WIDTH)), "all pixels have the value 0"),
    ],
)
def test_dicom_that_is_no_xray(written, changes, words):
    with pytest.raises(UnreadableError, match=words) as caught:
        read_radiograph(written(dataset(V12, **changes)))
    assert "Doe" not in str(caught.value) and "/" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        dict(Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        dict(Modality="OT", SOPClassUID=uid.SecondaryCaptureImageStorage),
        dict(NumberOfFrames=("IS", "")),
        dict(PixelData=V12.astype(np.uint16).tobytes() + bytes(512)),
    ],
)
def test_near_misses_that_are_fine(written, changes):
    assert alike(read_radiograph(written(dataset(V12, **changes)))) > 0.999


def test_lines_and_stripes_are_fine(written):
    values = V12.copy()
    values[::2] += 200  # two half pictures of a camera
    assert alike(read_radiograph(written(dataset(values)))) > 0.95
    coarse = read_radiograph(written(dataset(V12[::4])))
    assert alike(coarse, HEAD[::4]) > 0.999


def test_dicom_values(written):
    values = np.linspace(1000, 5000, 60 * 40).reshape(60, 40)
    plain = read_radiograph(written(dataset(values)))
    assert (
        plain.shape == (60, 40)
        and plain[0, 0] == 0
        and plain[-1, -1] == 1
        and abs(plain[30, 0] - 0.5) < 0.02
    )
    turned = dataset(values, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(read_radiograph(written(turned)), 1 - plain, atol=0.01)
    np.testing.assert_allclose(
        read_radiograph(written(dataset(values)), inverted=True), 1 - plain, atol=1e-6
    )
    windowed = dataset(
        values, WindowCenter=2000, WindowWidth=1000, RescaleSlope=1, RescaleIntercept=0
    )
    windowed = read_radiograph(written(windowed))
    assert windowed[0, 0] == 0 and windowed[30, 0] == 1  # above the window all is white


def test_rescaling_agrees_with_gdcm(written):
    import SimpleITK

    values = np.rint(HEAD * 3000 - 1500)
    path = written(
        dataset(values, np.int16, RescaleSlope=0.37, RescaleIntercept=-12, BitsStored=13)
    )
    reference = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).squeeze()
    low, high = np.percentile(reference, [0.5, 99.8])
    np.testing.assert_allclose(
        read_radiograph(path), np.clip((reference - low) / (high - low), 0, 1), atol=1e-3
    )


def test_truncated_dicom(written):
    path = written(dataset(np.arange(6000).reshape(100, 60)))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UnreadableError, match="damaged"):
        read_radiograph(path)


def test_dicom_files_of_pydicom_itself():
    """Files that its authors test with: a picture or a sentence, never a traceback."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = [pathlib.Path(f) for f in get_testdata_files("*.dcm")]
    read, slices = 0, 0
    for path in paths:
        try:
            picture = read_radiograph(path)
            assert picture.ndim == 2 and 0 <= picture.min() < picture.max() <= 1
            read += 1
        except UnreadableError as error:
            slices += "slice" in str(error)
            assert str(error)
    assert read >= 5 and slices >= 12 and len(paths) >= 50


def test_a_deflated_bomb_is_not_unpacked(written, monkeypatch):
    monkeypatch.setattr("data_builders.images.files.MAX_PIXELS", 1_000)
    small, large = np.arange(600).reshape(30, 20), np.arange(40_000).reshape(200, 200)
    data = dataset(small)
    data.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    path = written(data)
    assert read_radiograph(path).shape == (30, 20)
    data.PatientComments = "x" * 60_000
    path = written(data)
    assert path.stat().st_size < 5000
    with pytest.raises(UnreadableError, match="unpacks to more bytes than any X-ray has"):
        read_radiograph(path)
    with pytest.raises(UnreadableError, match="more pixels than any X-ray"):
        read_radiograph(written(dataset(large)))


@pytest.mark.parametrize("stated", ["Doe^Jane", "DOE", "1.2.840.10008.5.1.4.1.1.1.1   PN Doe^Jane"])
def test_no_header_value_gets_into_a_message(tmp_path, stated):
    """A damaged length makes an element swallow those behind it, the patient's name among them."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.SOPInstanceUID = "1.2.3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.SOPClassUID = data.Modality = stated
        data.save_as(tmp_path / "none.dcm")
        data.Rows, data.Columns, data.BitsAllocated, data.PixelRepresentation = 8, 8, 16, 0
        data.SamplesPerPixel, data.PixelData = 1, bytes(128)
        data.save_as(tmp_path / "image.dcm")
    for name in ("none.dcm", "image.dcm"):
        for read in (read_radiograph, lambda path: ct.read_head(path, 4.0)):
            with pytest.raises(UnreadableError) as caught:
                read(tmp_path / name)
            assert "doe" not in str(caught.value).lower()
