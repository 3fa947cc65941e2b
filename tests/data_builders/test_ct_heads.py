"""CT heads: every format gives the same volume, virtual heads, records, remarks, bad input."""

import re

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from scipy import ndimage

from cranio_jax.errors import InputError
from data_builders.ct_heads.ct_heads_dataset_builder import (
    Builder,
    Row,
    examine_volumes,
    make_config,
)
from data_builders.rendering import ct, warp
from data_builders.rendering.volume import Volume
from data_builders.volumes import reading


def head_like(shape=(60, 70, 50), spacing=(3.0, 3.0, 4.0)):
    """A shell of bone in a ball of water with a nose, and a table behind it, in HU on RAS+ axes."""
    x, y, z = (spacing[i] * (np.indices(shape)[i] - shape[i] / 2) for i in range(3))
    radius = np.sqrt(x**2 + y**2 + z**2)
    values = np.full(shape, -1000.0)
    values[radius < 78] = 40.0
    values[(radius > 60) & (radius < 68)] = 900.0
    values[(np.abs(x) < 10) & (np.abs(z) < 12) & (y > 60) & (y < 95)] = 40.0
    values[y < -95] = 0.0
    return values.astype(np.int16), np.diag([*spacing, 1.0])


def write_series(folder, values, affine):
    """A DICOM series with a slice a file, of a volume on RAS+ axes with a diagonal affine."""
    folder.mkdir()
    spacing = np.diag(affine)[:3]
    for k in range(values.shape[2]):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{k + 1}"
        data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = (
            "1.2.4",
            "1.2.5",
            "1.2.6",
        )
        data.PatientName, data.Modality, data.InstanceNumber = "Doe^Jane", "CT", k + 1
        # Rows run to the back, columns to the patient's left: the usual axial slice.
        data.Rows, data.Columns = values.shape[1], values.shape[0]
        data.PixelSpacing, data.SliceThickness = (
            [float(spacing[1]), float(spacing[0])],
            float(spacing[2]),
        )
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        place = affine @ [values.shape[0] - 1, values.shape[1] - 1, k, 1]
        data.ImagePositionPatient = [-place[0], -place[1], place[2]]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = np.uint16(values[::-1, ::-1, k].T + 1024).tobytes()
        data.save_as(folder / f"slice_{(k * 7) % 50:03d}.dcm", enforce_file_format=True)


@pytest.fixture
def archive(tmp_path):
    """The same head in four formats and orientations."""
    values, affine = head_like()
    folder = tmp_path / "Jane_Doe_CT"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(values, affine), folder / "a.nii.gz")
    # Axes in another order and direction, as many scanners write them.
    turned = np.ascontiguousarray(values.transpose(2, 0, 1)[::-1, ::-1])
    permuted = np.zeros((4, 4))
    permuted[2, 0], permuted[0, 1], permuted[1, 2] = -affine[2, 2], -affine[0, 0], affine[1, 1]
    permuted[:3, 3] = affine[0, 0] * (values.shape[0] - 1), 0, affine[2, 2] * (values.shape[2] - 1)
    permuted[3, 3] = 1
    nibabel.save(nibabel.Nifti1Image(turned, permuted), folder / "b.nii")
    image = SimpleITK.GetImageFromArray(values[::-1, ::-1].transpose(2, 1, 0))
    image.SetSpacing([float(s) for s in np.diag(affine)[:3]])
    SimpleITK.WriteImage(image, str(folder / "c.mha"))
    write_series(folder / "d", values, affine)
    return folder


def test_every_format_gives_the_same_head(archive):
    first = ct.boxed(ct.read_head(archive / "a.nii.gz", voxel=2.0))
    for name in ("b.nii", "c.mha", "d"):
        other = ct.boxed(ct.read_head(archive / name, voxel=2.0))
        assert other.values.shape == first.values.shape
        assert np.abs(other.values - first.values).mean() < 5.0, name
    solid = np.argwhere(first.values > -300) * 2.0 + first.origin
    # The nose points to the front, the table behind is gone, and nose and crown lie where the
    # pictures expect them.
    assert np.abs(solid.max(0) - [0, 114, 120])[1:].max() < 2.5
    assert solid.min(0)[1] > 114 - 95 - 80
    nose = solid[solid[:, 1] > 105]
    assert np.abs(nose[:, 0]).max() < 14


def test_fine_voxels_are_averaged(tmp_path):
    values, affine = head_like()
    fine = values.repeat(2, 0).repeat(2, 1).astype(np.float32)
    grain = 400.0 * (2.0 * (np.indices(fine.shape).sum(0) % 2) - 1)
    half = affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 1, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(fine, half), tmp_path / "clean.nii")
    nibabel.save(nibabel.Nifti1Image(fine + grain, half), tmp_path / "grainy.nii")
    scans = [reading.read_scan(tmp_path / f"{name}.nii") for name in ("clean", "grainy")]
    a, b = (ct._upright(s.values.astype(np.float32), s.affine, 3.0).values for s in scans)
    assert np.abs(a - b).max() < 1.0


def test_a_warp_folds_nothing_and_has_an_inverse():
    """Its Jacobian's determinant stays above 0, and the flow back leads back."""
    worst, sizes = np.inf, []
    for number in range(8):
        bent = warp.displacement(np.random.SeedSequence(number), (280.0, 300.0, 300.0), 5.0) / 8.0
        gradient = np.stack([np.stack(np.gradient(bent[..., i]), -1) for i in range(3)], -2)
        worst = min(worst, np.linalg.det(np.eye(3) + gradient).min())
        sizes.append(8.0 * np.sqrt((bent**2).sum(-1).mean()))
    assert worst > 0.3 and 3.0 < np.mean(sizes) < 7.0
    noise = np.random.default_rng(0).standard_normal((36, 38, 38, 3))
    velocity = ndimage.gaussian_filter(noise, (4, 4, 4, 0))
    velocity *= 0.6 / np.abs(velocity).max()
    there, back = warp.exponential(velocity), warp.exponential(-velocity)
    assert np.abs(there + warp.at(back, there))[4:-4, 4:-4, 4:-4].max() < 0.02 * np.abs(there).max()


def test_virtual_heads():
    values = np.zeros((30, 32, 34), np.float32)
    values[14:16, 20:24, 8:12] = 1.0
    head = Volume(values, np.full(3, 2.0, np.float32), np.zeros(3, np.float32))

    def make(*amounts, seed=0):
        return warp.virtual(head, np.random.SeedSequence(seed), *amounts, outside=0.0).values

    np.testing.assert_allclose(make(0, 0, 0), values, atol=1e-5)
    np.testing.assert_array_equal(make(3, 3, 3), make(3, 3, 3))
    assert np.abs(make(3, 3, 3) - make(3, 3, 3, seed=1)).max() > 0.5
    # A quarter turn by hand: the rotation is one.
    turn = warp._rotation(np.array([0, 0, np.pi / 2]))
    np.testing.assert_allclose(turn @ [1, 0, 0], [0, 1, 0], atol=1e-12)

    def centre(v):
        return np.array(ndimage.center_of_mass(v))

    moved = warp.virtual(head, np.random.SeedSequence(5), 0.0, 4.0, 0.0, outside=0.0).values
    drawn = (
        4.0 * np.random.default_rng(np.random.SeedSequence(5).spawn(2)[0]).standard_normal(6)[3:]
    )
    np.testing.assert_allclose(centre(moved) - centre(values), drawn / 2.0, atol=0.05)


def write_manifest(archive, *lines, header="subject,volume,age,sex"):
    (archive / "heads.csv").write_text("\n".join([header, *lines]) + "\n")
    return str(archive / "heads.csv")


@pytest.fixture
def small(monkeypatch):
    """Coarse cubes, so that little is computed."""
    monkeypatch.setattr(
        "data_builders.ct_heads.ct_heads_dataset_builder.voxel_for", lambda size: 4.0
    )


def test_records(archive, tmp_path, small):
    lines = ["Jane,a.nii.gz,61,f,train", "John,b.nii,40,m,test", "Joan,d,50,f,train"]
    config = make_config(
        manifest=write_manifest(archive, *lines, header="subject,volume,age,sex,split"),
        size=32,
        variants=2,
        split="column",
    )
    builder = Builder(config=config, data_dir=tmp_path / "records")
    builder.download_and_prepare(file_format="array_record")
    train, test = (list(builder.as_data_source(split)) for split in ("train", "test"))
    assert len(train) == 2 * 3 * 2 and len(test) == 2
    assert {r["head"] for r in train} & {r["head"] for r in test} == set()
    assert len({r["subject"] for r in train}) == 6 and not any(r["virtual"] for r in test)
    assert sum(r["virtual"] for r in train) == 8 and all(
        (r["subject"] != r["head"]) == r["virtual"] for r in train
    )
    for record in (*train, *test):
        assert record["xray"].shape == (32, 32, 1) and record["xray"].max() > 200
        skin = np.abs(record["face"].astype(int) - record["face"][0, 0]).max(-1) > 20
        assert (skin & (record["xray"][..., 0] > 60)).sum() > 0.9 * (
            record["xray"][..., 0] > 60
        ).sum()
    of = {
        (r["subject"], r["xray_view"]): r["xray"].astype(int)
        for r in train
        if r["head"] == train[0]["head"]
    }
    pictures = [picture for (_, view), picture in of.items() if view == b"frontal"]
    assert np.abs(pictures[0] - pictures[1]).max() > 30
    for path in (tmp_path / "records").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [
                word for word in (b"Jane", b"Doe", str(tmp_path).encode()) if word in content
            ], path


def test_remarks_and_what_the_list_states(archive, tmp_path, small, capsys):
    values, affine = head_like()
    image = nibabel.Nifti1Image(values + np.int16(1024), affine)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, archive / "bare.nii.gz")
    header = "subject,volume,age,sex,split,orientation,hu_offset"
    lines = ["Jane,bare.nii.gz,61,f,train,ras,-1024", "John,c.mha,40,m,test,,"]

    def build(*lines):
        config = make_config(
            manifest=write_manifest(archive, *lines, header=header), size=32, split="column"
        )
        builder = Builder(config=config, data_dir=tmp_path / "records")
        builder.download_and_prepare(file_format="array_record")
        return builder.info.metadata

    remarks = build(*lines)["remarks"]
    ((words, rows),) = remarks.items()
    assert rows == [3] and "identity directions" in words
    assert f"heads.csv, row 3: {words}" in capsys.readouterr().err
    for wrong, words in (
        ("Jane,bare.nii.gz,61,f,train,,-1024", "row 2: volume='bare.nii.gz': does not state how"),
        (
            "Jane,bare.nii.gz,61,f,train,RAS,",
            "row 2: volume='bare.nii.gz': does not hold Hounsfield",
        ),
        ("Jane,bare.nii.gz,61,f,train,RAT,-1024", "row 2: orientation='RAT' is not three letters"),
        ("Jane,bare.nii.gz,61,f,train,RAS,air", "row 2: hu_offset='air' is not a number"),
        ("Jane,a.nii.gz,61,f,train,LPS,", "row 2: volume='a.nii.gz': its header states"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            build(wrong, lines[1])


def test_any_failure_is_one_bad_row(archive, monkeypatch):
    def fail(path, *settings):
        raise RecursionError(str(path))

    monkeypatch.setattr(ct, "examine_head", fail)
    rows = [Row(k, "x", archive / "a.nii.gz", 40.0, "female", "") for k in (2, 3)]
    problems = examine_volumes(rows).problems
    assert [number for number, _ in problems] == [2, 3]
    assert problems[0][1] == "volume='a.nii.gz': not readable (RecursionError)"


def test_bad_volumes_and_rows(archive, tmp_path, small):
    (archive / "broken.nii.gz").write_bytes((archive / "a.nii.gz").read_bytes()[:3000])
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.eye(4)), archive / "air.nii"
    )
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20), np.int16), np.eye(4)), archive / "flat.nii")
    (archive / "empty").mkdir()
    (archive / "text.mha").write_text("no volume")
    lines = [
        f"s{i},{name},50,f"
        for i, name in enumerate(
            ("broken.nii.gz", "air.nii", "flat.nii", "empty", "text.mha", "a.nii.gz", "b.nii")
        )
    ]

    def build(*lines, **settings):
        return Builder(
            config=make_config(manifest=write_manifest(archive, *lines), size=32, **settings),
            data_dir=tmp_path / "records",
        ).download_and_prepare(file_format="array_record")

    with pytest.raises(InputError) as caught:
        build(*lines)
    for words in (
        "heads.csv, row 2: volume='broken.nii.gz': not a readable NIfTI file",
        (
            "row 3: volume='air.nii': holds hardly anything as dense as bone; are these Hounsfield"
            " units?"
        ),
        "row 4: volume='flat.nii': holds an array of shape (20, 20)",
        "row 5: volume='empty': holds no DICOM series; name a folder that holds one",
        "row 6: volume='text.mha': not a readable volume",
        "--config.data.ct_heads.on_bad_row=skip",
    ):
        assert words in str(caught.value), words
    with pytest.raises(InputError, match=r"row 3: the same volume as in row 2") as caught:
        build(
            "A,a.nii.gz,50,f", "B,a.nii.gz,40,m", "A,b.nii,40,m", "C,c.mha,450,m", "D,none.nii,40,m"
        )
    for words in (
        "row 4: the same subject as in row 2",
        "row 5: age=450 is outside",
        "row 6: volume='none.nii': no such file",
    ):
        assert words in str(caught.value)
    build(*lines, on_bad_row="skip")
    for wrong, words in (
        (dict(bend=30), "bend=30 is out of range. Use 0 to 12 mm"),
        (dict(pairing="x"), "pairing='x'"),
        (dict(manifest=""), "empty"),
    ):
        with pytest.raises(ValueError, match=words):
            make_config(**{"manifest": str(archive / "heads.csv")} | wrong)
