"""The input pipeline: order, augmentation, and records with other settings."""

import json
import multiprocessing
import pathlib
import shutil
from functools import partial
from unittest import mock

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds
from skimage import transform

from cranio_jax import data
from cranio_jax.data import augmentation, splits
from cranio_jax.errors import InputError
from cranio_jax.models import alignment


@pytest.fixture
def examples(config):
    return data.Examples(data.make_builder(config.data), "train", config)


def test_processes_share_one_global_order(config, examples):
    prepare = partial(data.augment, settings=config.augment)
    whole = data.TrainingBatches(examples, 8, 3, prepare)
    shares = ([0, 1, 4, 5], [2, 3, 6, 7])
    halves = [data.TrainingBatches(examples, 8, 3, prepare, rows) for rows in shares]
    for _ in range(60):  # more than one pass over the 360 examples
        batch = next(whole)
        for rows, half in zip(shares, halves, strict=True):
            for name, part in next(half).items():
                np.testing.assert_array_equal(part, batch[name][rows])
    assert whole.get_state() == halves[0].get_state() == halves[1].get_state()


def test_each_pass_sees_every_example_once(config, examples):
    batches = data.TrainingBatches(examples, 8, 0, partial(data.augment, settings=config.augment))
    seen = [
        np.concatenate([next(batches)["id_hash"] for _ in range(len(examples) // 8)])
        for _ in range(2)
    ]
    assert len(examples) % 8 == 0 and all(len(set(s)) == len(examples) for s in seen)
    assert list(seen[0]) != list(seen[1])


def test_weights_say_how_often_an_example_is_drawn(config, examples):
    def prepare(example, rng):
        return {"place": np.array(example["index"]), "id_hash": rng.integers(2**32, size=())}

    weights = [0.25 if place % 3 else 1.0 for place in range(len(examples))]
    drawn = data.TrainingBatches(examples, 8, 0, prepare, weights=weights)
    batches = [next(drawn) for _ in range(120)]
    places = np.concatenate([batch["place"] for batch in batches])
    counts = np.bincount(places, minlength=len(examples))
    # 960 draws of 120 examples of weight 1 and 240 of weight 1/4: 5.33 and 1.33 of each.
    assert set(counts[::3]) <= {5, 6} and set(np.delete(counts, np.s_[::3])) <= {1, 2}
    assert counts[::3].sum() == 640
    assert len({int(n) for batch in batches for n in batch["id_hash"]}) == 960

    # Any process resumes anywhere in the same order.
    again = data.TrainingBatches(examples, 4, 0, prepare, [1, 3], {"examples": 16}, weights=weights)
    for expected in batches[2:10]:
        for half in (slice(0, 4), slice(4, 8)):
            np.testing.assert_array_equal(next(again)["place"], expected["place"][half][[1, 3]])


def test_weights_need_records_that_tell(config, examples):
    assert examples.weights() is None
    config.data.synthetic_weight = 0.5
    with pytest.raises(InputError, match="do not tell synthetic faces apart. Set it to 1"):
        data.Examples(data.make_builder(config.data), "train", config).weights()


def marked():
    """X-ray and face with the same bright square in the same place."""
    face = np.full((32, 32, 3), 40, np.uint8)
    face[4:12, 18:27] = 220
    return {"xray": face[..., :1].copy(), "face": face}


@pytest.mark.parametrize(
    ("setting", "moved"),
    [
        ({"flip": 1.0}, 5),
        ({"rotation": 30.0}, 5),
        ({"bend": 0.03}, 2),
        ({"rotation": 30.0, "bend": 0.03}, 5),
    ],
)
def test_geometry_moves_xray_and_face_together(config, setting, moved):
    config.augment.update(flip=0.0, rotation=0.0, brightness=0.0, contrast=0.0, erase=0.0)
    config.augment.update(setting)
    before = marked()
    after = data.augment(before, np.random.default_rng(1), config.augment)
    inside = after["face"][..., 0].astype(int)
    assert np.abs(inside - before["face"][..., 0]).mean() > moved
    # A rotation fills the corners with background in the face and with black in the X-ray.
    covered = after["xray"][..., 0] > 30
    assert covered.mean() > 0.7
    assert np.abs(inside - after["xray"][..., 0])[covered].max() <= 12


@pytest.mark.parametrize(
    "setting",
    [
        {"flip": 1.0},
        {"rotation": 30.0},
        {"bend": 0.03},
        {"flip": 1.0, "rotation": 30.0},
        {"rotation": 30.0, "bend": 0.03},
        {"rotation": 30.0, "skin": 0.02},
    ],
)
def test_landmarks_move_with_the_face(config, setting):
    config.augment.update(flip=0.0, rotation=0.0)
    config.augment.update(setting)
    places = np.array([[20, 30], [44, 28], [33, 40], [24, 50], [41, 51]], np.float32)
    face = np.zeros((64, 64, 3), np.uint8)
    for i, (column, row) in enumerate(places.astype(int)):
        face[row - 1 : row + 2, column - 1 : column + 2] = (
            50 + 40 * i
        )  # each mark has a different brightness
    before = {"face": face, "landmarks": places, "head_mask": np.uint8(face[..., :1] > 0)}
    after = data.move(before, np.random.default_rng(1), config.augment)
    order = (
        [1, 0, 2, 4, 3] if "flip" in setting else range(5)
    )  # the eye and mouth corner on the picture's left stay first
    for place, i in zip(after["landmarks"], order, strict=True):
        column, row = np.round(place).astype(int)
        assert after["face"][row, column, 0] == pytest.approx(50 + 40 * i, abs=12)


def test_a_bend_shears_and_stretches_the_head():
    """Chins of real people differ in their place by more than the features' own displacement."""
    pushes = np.stack(
        [data.displacement(np.random.default_rng(s), 128, 0.03, mirrored=False) for s in range(400)]
    )
    jaw_to_brow = pushes[:, 96:112, 64:].mean((1, 2)) - pushes[:, 32:48, 64:].mean((1, 2))
    assert np.abs(jaw_to_brow.mean(0)).max() < 1.0
    # Half of the height between them, times 3.5 bends, with the features' own on top.
    np.testing.assert_allclose(jaw_to_brow.std(0), 7.5, atol=0.8)

    frontal = data.displacement(np.random.default_rng(1), 128, 0.03, mirrored=True)
    np.testing.assert_allclose(frontal[..., 0], -frontal[:, ::-1, 0], atol=1e-4)
    np.testing.assert_allclose(frontal[..., 1], frontal[:, ::-1, 1], atol=1e-4)


@pytest.mark.parametrize("view", ["frontal", "lateral"])
def test_skin_moves_and_what_is_deep_stays(config, view):
    """A round head of radius 40 whose grey tells how far it is from the middle."""
    config.augment.update(flip=0.0, rotation=0.0, bend=0.0, skin=0.015)
    rows, columns = np.mgrid[:128, :128] - 63.5
    radius = np.hypot(rows, columns)[..., None]
    head = np.uint8(255 * (radius < 40))
    grey = np.uint8(np.where(head > 0, 50 + 4 * radius, 0).round())
    before = {
        "xray": grey,
        "face": np.repeat(grey, 3, -1),
        "head_mask": head,
        "xray_mask": head,
        "xray_view": view,
        "face_view": view,
    }
    rng = np.random.default_rng(0)
    after = [data.move(before, rng, config.augment) for _ in range(60)]
    for moved in after:
        np.testing.assert_array_equal(moved["face"][..., :1], moved["xray"])
        np.testing.assert_array_equal(moved["head_mask"], moved["xray_mask"])
        if view == "frontal":
            wrong = np.abs(moved["xray"][:, ::-1].astype(int) - moved["xray"]) > 3
            assert wrong.mean() < 0.02

    # Half of the displacement of 1.9 pixels or more is along the outline, and not seen.
    moved = np.stack([example["xray"] for example in after]).astype(float)
    by_depth = [(moved - grey)[:, (radius > d) & (radius < d + 1)].std() / 4 for d in (34, 31, 25)]
    ends = np.stack([example["head_mask"] > 0 for example in after])
    width = ends[:, 63, :, 0].sum(-1) / 2
    assert 1.0 < width.std() * (np.sqrt(2) if view == "lateral" else 1) < 2.8
    assert 0.5 < by_depth[0] < 1.6 and by_depth[1] < 0.7 * by_depth[0] and by_depth[2] < 0.15

    # Nor does the skin of a dry skull.
    dry = before | {"xray": np.where(radius < 30, grey, 0)}
    np.testing.assert_array_equal(data.move(dry, rng, config.augment)["face"], dry["face"])

    # Nothing moves where X-ray and face are not in register, or no mask tells where the skin is.
    # The X-ray's own mask will do.
    without = {k: v for k, v in before.items() if k not in ("head_mask", "xray_mask")}
    for still in (before | {"face_view": "other"}, without):
        np.testing.assert_array_equal(data.move(still, rng, config.augment)["xray"], grey)
    alone = before.copy()
    del alone["head_mask"]
    one, other = (
        data.move(example, np.random.default_rng(1), config.augment) for example in (before, alone)
    )
    np.testing.assert_array_equal(one["xray"], other["xray"])


def test_skin_has_bumps_of_all_sizes():
    """Some are as wide as a nose and some as half a lip; the widest are the largest."""
    mask = np.ones((128, 128, 1), np.uint8)
    mask[:, 64:] = 0
    widths, sizes = [], []
    for seed in range(200):
        moved = augmentation.skin_displacement(np.random.default_rng(seed), mask, 0.015, False)
        along = moved[:, 63, 0]
        sizes.append(along.std())
        widths.append(128 / max(1, np.sum(np.diff(np.sign(along)) != 0)))
    widths, sizes = np.array(widths), np.array(sizes)
    assert np.quantile(widths, 0.1) < 14 and np.quantile(widths, 0.9) > 20
    assert sizes[widths > 20].mean() > 1.1 * sizes[widths < 14].mean()
    assert 1.2 < sizes.mean() < 2.4  # 0.015 of 128 pixels are 1.9


def test_frontal_faces_have_landmarks(examples):
    found = [examples[i] for i in range(36)]
    assert {e["face_view"] for e in found} == {"frontal", "lateral"}
    for example in found:
        landmarks = example["landmarks"]
        assert np.isfinite(landmarks).all() == (example["face_view"] == "frontal")
        if example["face_view"] == "frontal":  # in the order of ArcFace's template
            fit = transform.SimilarityTransform.from_estimate(landmarks, alignment.TEMPLATE)
            assert (
                np.abs(fit(landmarks) - alignment.TEMPLATE).max() < 10
                and fit.scale > 0
                and abs(fit.rotation) < 0.1
            )


def test_exposure_and_erasing_touch_the_xray_alone(config):
    config.augment.update(flip=0.0, rotation=0.0, brightness=0.15, contrast=0.2, erase=0.05)
    before = marked()
    changed = []
    for seed in range(20):
        after = data.augment(before, np.random.default_rng(seed), config.augment)
        np.testing.assert_array_equal(after["face"], before["face"])
        changed.append(np.abs(after["xray"].astype(int) - before["xray"]).mean())
    assert np.mean(changed) > 5


def test_erased_area_is_bounded(config):
    config.augment.update(flip=0.0, rotation=0.0, brightness=0.0, contrast=0.0, erase=0.05)
    flat = {"xray": np.full((64, 64, 1), 100, np.uint8), "face": np.zeros((64, 64, 3), np.uint8)}
    areas = [
        (data.augment(flat, np.random.default_rng(s), config.augment)["xray"] != 100).mean()
        for s in range(200)
    ]
    assert 0.01 < max(areas) < 0.06


def test_last_batch_is_masked(examples):
    batches = list(data.ordered_batches([examples[i] for i in range(5)], 4))
    assert [b["mask"].tolist() for b in batches] == [[1, 1, 1, 1], [1, 0, 0, 0]]


def test_unknown_builder_and_setting(config):
    config.data.settings.pairing = "all_pairs"
    with pytest.raises(InputError, match="pairing='all_pairs' is not one of matched, all_views"):
        data.make_builder(config.data)
    config.data.builder = "skulls"
    with pytest.raises(InputError, match="data.builder='skulls'"):
        data.make_builder(config.data)


def test_no_path_in_examples(examples, records):
    assert str(records) not in repr(examples) and str(records) not in repr(examples[0])


def test_two_that_start_together_build_once(config, tmp_path):
    """Two processes that start together build the records once.

    Without a lock both would build them, and the second could not move its folder into place.
    """
    config.data.data_dir = str(tmp_path)
    config.data.cranio_phantom.subjects = 4
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = pool.map(_count_records, [config.data.to_json()] * 2)
    assert counts[0] == counts[1] > 0
    assert len(list(tmp_path.glob("cranio_phantom/*/[0-9]*"))) == 1


def _count_records(config):
    builder = data.make_builder(ml_collections.ConfigDict(json.loads(config)))
    return sum(split.num_examples for split in builder.info.splits.values())


def test_records_built_with_other_settings_are_refused(config, tmp_path):
    data.make_builder(config.data)
    shutil.copytree(config.data.data_dir, tmp_path / "records")
    config.data.data_dir = str(tmp_path / "records")
    folder = pathlib.Path(str(data.make_builder(config.data).data_dir))
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(metadata | {"skin_spread": 0.25}))
    with pytest.raises(InputError, match="was built with skin_spread=0.25, not 0.06"):
        data.make_builder(config.data)


def test_the_fingerprint_is_of_the_content(monkeypatch):
    builder = mock.Mock(spec=tfds.core.DatasetBuilder)
    builder.info.splits = ("train", "test")
    record = {
        "id": b"a",
        "xray": b"\x89PNG",
        "age": 45.0,
        "face_landmarks": np.zeros((5, 2), np.float32),
    }

    def of(*records):
        monkeypatch.setattr(splits, "_records", lambda builder, split, images: records)
        return data.fingerprint(builder)

    turned = dict(reversed(record.items()))  # the order of fields differs from build to build
    assert of(record, record) == of(turned, record) != of(record)
    for change in (
        {"xray": b"\x89PNH"},
        {"age": 46.0},
        {"face_landmarks": np.ones((5, 2), np.float32)},
    ):
        assert of(record | change, record) != of(record, record)
