"""X-rays varied as real ones are: still X-rays, with the face where it was and in the picture."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from cranio_jax import data
from cranio_jax.data import radiographs
from data_builders.cranio_phantom import cohort
from data_builders.cranio_phantom import cranio_phantom_dataset_builder as cranio_phantom
from data_builders.cranio_phantom.skull import LANDMARKS
from tests.data.test_data import marked


@pytest.fixture
def xray():
    """A bright ring with something in it, on black, as a skull is."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    radius = np.hypot(x, y)
    picture = 90.0 * (radius < 0.7) + 120.0 * (np.abs(radius - 0.65) < 0.06)
    picture += 60.0 * (np.hypot(x - 0.2, y - 0.3) < 0.15)
    return np.uint8(np.clip(picture, 0, 255))[..., None]


def test_each_seed_has_an_x_ray_of_its_own(xray):
    first, again, other = (
        radiographs.vary(xray, np.random.default_rng(seed), 1.0) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == xray.shape and first.dtype == np.uint8
    assert np.abs(first.astype(int) - other).mean() > 3


def test_no_x_ray_is_lost(xray):
    """Varied heads are alike to what they were, and no X-ray is even."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    head = np.hypot(x, y) < 0.8  # film edges are brighter than a head
    before = xray[head, 0].astype(float)
    alike = []
    for seed in range(300):
        after = radiographs.vary(xray, np.random.default_rng(seed), 1.0)[..., 0].astype(float)
        assert after.std() > 20, seed
        alike.append(np.corrcoef(before, after[head])[0, 1])
    assert np.mean(alike) > 0.85 and np.quantile(alike, 0.02) > 0.6
    assert np.quantile(alike, 0.3) < 0.97  # they do change


def test_strength_says_how_much(xray):
    def change(strength):
        return np.mean(
            [
                np.abs(radiographs.vary(xray, np.random.default_rng(s), strength) - xray * 1.0)
                for s in range(60)
            ]
        )

    assert 0 < change(0.2) < 0.5 * change(1.0)


@pytest.mark.parametrize("change", [change for change, _ in radiographs._CHANGES])
def test_each_change_changes_something(xray, change):
    picture = xray[..., 0].astype(np.float32) / 255
    picture[26:29, 50:] = 0.0  # a nasion
    sums = [
        np.abs(np.clip(change(picture, np.random.default_rng(seed), 1.0), 0, 1) - picture).mean()
        for seed in range(12)
    ]
    assert np.isfinite(sums).all() and np.max(sums) > 0.005


def test_air_is_dark_along_the_skin_and_brighter_beyond(xray):
    """The glow that a filter leaves never covers the head, and soon is as bright as its rim."""
    picture = np.pad(xray[..., 0].astype(np.float32) / 255, 40)
    head = picture > 0.03
    glows = [radiographs._glow(picture, np.random.default_rng(seed), 1.0) for seed in range(50)]
    assert max(glow[head].max() for glow in glows) < 0.05
    y, x = np.mgrid[-1:1:144j, -1:1:144j]
    radius = np.hypot(x, y) * 72 / 32  # of the head: 0.7
    along, away = (
        np.array([glow[(radius > near) & (radius < far)].mean() for glow in glows])
        for near, far in ((0.72, 0.78), (1.5, 1.7))
    )
    assert np.quantile(along, 0.9) < 0.05 and np.quantile(away, 0.3) > 0.05 and away.max() > 0.4


def test_a_halo_darkens_what_is_beside_bone():
    """Thin tissue far from bone is brighter than tissue and air beside bone."""
    picture = np.zeros((128, 128), np.float32)
    picture[:, :60], picture[:, 60:90] = 0.8, 0.02  # bone, and thin tissue in front of it
    for seed in range(20):
        halo = radiographs._halo(picture, np.random.default_rng(seed), 1.0)
        row = halo[64]
        assert row[61] < row[89] <= row[120] + 1e-6 and row[120] > 0.04, seed


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_rest_touches_the_nasion(mirrored):
    """The rest ends in a pit of the profile, and its bar stands before the forehead."""
    y, x = np.mgrid[:128, :128]
    front = 80 + np.minimum(10, abs(y - 45))  # farthest back in row 45
    picture = np.float32(x < front) * 0.1
    for seed in range(20):
        before = picture[:, ::-1] if mirrored else picture
        after = radiographs._rest(before, np.random.default_rng(seed), 1.0)
        new = (after[:, ::-1] if mirrored else after) > picture
        rows, columns = np.flatnonzero(new.any(1)), np.flatnonzero(new[45])
        assert 45 <= rows[-1] < 50 and columns[0] < 83 and not new[:, :77].any(), seed
        assert new[rows[0], columns[0] :].any() and rows[0] < 42, seed


def test_no_rest_without_a_profile():
    """Neither an empty picture, nor grey air, nor a round head has a place for it."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    for picture in (np.zeros_like(x), np.full_like(x, 0.3), 0.5 * (np.hypot(x, y) < 0.7)):
        after = radiographs._rest(np.float32(picture), np.random.default_rng(0), 1.0)
        np.testing.assert_array_equal(after, np.float32(picture))


@pytest.mark.parametrize("painter", range(7))
def test_objects_are_painted(painter):
    """Each kind of object shows in most of its draws."""
    kinds = (
        *(radiographs._film_marks, radiographs._ruler, radiographs._ear_rod),
        *(radiographs._letters, radiographs._lines, radiographs._apron, radiographs._filter),
    )
    shown = 0
    for seed in range(20):
        film = np.zeros((128, 128), np.uint8)
        kinds[painter](film, np.random.default_rng(seed))
        shown += bool(film.any())
    assert shown > 14


@pytest.mark.parametrize("mirrored", [False, True])
def test_faces_stay_in_the_picture(mirrored):
    """Profile and chin, at 0.43 and 0.38 of the side from the middle, are never cut off."""
    rng = np.random.default_rng(0)
    framings = [radiographs.framing(rng, 1.0, "lateral", mirrored) for _ in range(500)]
    zooms = np.array([f.zoom for f in framings])
    shifts = np.array([f.shift for f in framings])
    forward = shifts[:, 0] * (-1 if mirrored else 1)
    assert (0.43 * zooms + forward).max() < 0.5 and (0.38 * zooms + shifts[:, 1]).max() < 0.5
    assert forward.min() < -0.15 and forward.max() > 0.05 and zooms.min() < 0.9 < 1.3 < zooms.max()
    frontal = [radiographs.framing(rng, 1.0, "frontal", mirrored) for _ in range(500)]
    assert max(0.30 * f.zoom + abs(f.shift[0]) for f in frontal) < 0.5


def moving(config):
    config.augment.update(flip=0.0, rotation=0.0, bend=0.0, radiograph=1.0)
    return config.augment


def test_x_ray_and_face_are_framed_alike(config):
    """A bright square moves to the same place of both."""
    for seed in range(20):
        after = data.move(
            marked() | {"xray_view": "frontal", "face_view": "frontal"},
            np.random.default_rng(seed),
            moving(config),
        )
        here = after["xray"][..., 0] > 120
        assert here.any()
        np.testing.assert_array_equal(here, after["face"][..., 0] > 120)


@pytest.mark.parametrize("name", ["head_mask", "xray_mask"])
def test_masks_are_framed_with_the_face(config, name):
    for seed in range(20):
        example = marked() | {"xray_view": "frontal", "face_view": "frontal"}
        example[name] = np.uint8(example["face"][..., :1] > 120)
        after = data.move(example, np.random.default_rng(seed), moving(config))
        head, mask = after["face"][..., 0] > 120, after[name][..., 0]
        assert set(np.unique(mask)) == {0, 1} and (head != mask).mean() < 0.01 < head.mean()


def test_landmarks_are_framed_with_the_face(config):
    places = np.array([[20, 30], [44, 28], [33, 40], [24, 50], [41, 51]], np.float32)
    face = np.zeros((64, 64, 3), np.uint8)
    for i, (column, row) in enumerate(places.astype(int)):
        face[row - 1 : row + 2, column - 1 : column + 2] = 50 + 40 * i
    moved = []
    for seed in range(20):
        example = {"face": face, "landmarks": places, "xray_view": "frontal"}
        after = data.move(example, np.random.default_rng(seed), moving(config))
        moved.append(np.abs(after["landmarks"] - places).mean())
        for i, place in enumerate(after["landmarks"]):
            column, row = np.round(place).astype(int)
            if 1 < column < 62 and 1 < row < 62:
                assert after["face"][row, column, 0] == pytest.approx(50 + 40 * i, abs=25)
    assert np.mean(moved) > 3


def test_a_neck_goes_on_below_the_picture(config):
    """Of a smaller or higher head the neck is not cut off; what is beside it is background."""
    face = np.full((64, 64, 3), 200, np.uint8)
    face[20:, 24:40] = 90
    raised = 0
    for seed in range(40):
        example = {"face": face, "xray": face[..., :1], "xray_view": "frontal"}
        after = data.move(example, np.random.default_rng(seed), moving(config))["face"]
        raised += (after[-1] == 90).any() and (after[-1, [0, -1]] == 200).all()
    assert raised == 40


def test_without_it_nothing_is_framed(config):
    config.augment.update(flip=0.0, rotation=0.0, bend=0.0, radiograph=0.0)
    after = data.move(marked(), np.random.default_rng(0), config.augment)
    np.testing.assert_array_equal(after["face"], marked()["face"])


def test_thin_tissue_is_shown_up_to_the_skin():
    """Tissue that is as dark as air is brightened, air is not, and a dry skull stays dry."""
    mask = np.zeros((128, 128, 1), np.uint8)
    mask[20:110, 20:100] = 255
    xray = np.zeros_like(mask)
    xray[24:108, 22:97] = 120
    seen = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shown = radiographs.show_thin_tissue(xray, mask, rng, 1.0)
        assert not shown[mask == 0].any() and (shown >= xray).all()
        np.testing.assert_array_equal(shown[xray > 0], 120)
        seen.append(shown[60, 98, 0])
    assert 0.6 < np.mean(np.array(seen) > 0) < 0.95 and 5 < np.median(seen) < 36
    dry = np.where(np.arange(128)[:, None, None] < 80, xray, 0).astype(np.uint8)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        np.testing.assert_array_equal(radiographs.show_thin_tissue(dry, mask, rng, 1.0), dry)


@pytest.fixture(scope="module")
def dry_skull():
    """X-ray and mask of a dry skull from the side, and landmarks `(column, row)` by name."""
    config = cranio_phantom.PhantomConfig(size=64, subjects=3, appearances=1, dry=1.0)
    with jax.numpy_rank_promotion("allow"):
        skull, tissue, _ = cohort.appearance(cohort.draw(0, 0), 45.0, 0.0, config.spread)
        (made,) = cranio_phantom._xrays(config, skull, tissue, 0)
    pngs = made.png["lateral"], made.masks["lateral"]
    xray, mask = (np.array(Image.open(io.BytesIO(png)))[..., None] for png in pngs)
    return xray, mask, dict(zip(LANDMARKS, made.landmarks["lateral"], strict=True))


def test_hidden_soft_tissue(dry_skull):
    """It is even in front of and below the bones of the face, and seen at forehead and nape."""
    xray, mask, places = dry_skull
    hidden = radiographs.hide_soft_tissue(xray, mask, np.random.default_rng(0), 0.0, False)[..., 0]
    head = mask[..., 0] > 0
    even = hidden[-1, -1]
    for name in ("prosthion", "infradentale", "supramentale", "pogonion"):
        column, row = np.round(places[name]).astype(int)
        assert head[row, column + 2] and (hidden[row, column + 2 :] == even).all(), name
        assert hidden[row, column - 2] > even + 30, name
    column, row = np.round(places["menton"]).astype(int)
    assert (hidden[row + 3 :, column:] == even).all() and head[row + 1, column]
    column, row = np.round(places["glabella"]).astype(int)
    skin = column + int(np.argmin(head[row, column:]))
    assert hidden[row, skin - 2] > xray[row, skin - 2, 0] + 3
    nape = int(np.argmax(head[-4])) + 3
    assert hidden[-4, nape] > xray[-4, nape, 0] + 3

    left = (x[:, ::-1] for x in (xray, mask))
    turned = radiographs.hide_soft_tissue(*left, np.random.default_rng(0), 0.0, True)[..., 0]
    np.testing.assert_array_equal(turned, hidden[:, ::-1])


def test_some_dry_skulls_are_living_heads_with_hidden_tissue(config, dry_skull):
    """In training, from the side alone, whichever way they look."""
    config.augment.update(flip=0.5, radiograph=1.0, contrast=0.0, brightness=0.0, erase=0.0)
    xray, mask, _ = dry_skull
    shares = []
    for view in ("lateral", "frontal"):
        example = {"xray": xray, "xray_mask": mask, "xray_view": view, "face_view": "frontal"}
        even = []
        for seed in range(60):
            moved = data.augment(example, np.random.default_rng(seed), config.augment)
            front = moved["xray"][26:40, :: -1 if moved["mirrored"] else 1][:, -4:]
            even.append(front.min() == front.max())
        shares.append(np.mean(even))
    assert shares[0] > 0.3 and shares[0] - shares[1] > 0.2, shares
