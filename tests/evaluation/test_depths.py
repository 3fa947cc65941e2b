"""Errors in millimetres: the truth, the rivals, and what is told about them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import demo
from cranio_jax.errors import InputError
from cranio_jax.evaluation import depths
from cranio_jax.evaluation.results import BySubject, Depths, Results, from_json, to_json
from cranio_jax.metrics.depths import depths as measured
from cranio_jax.metrics.estimates import Estimate
from cranio_jax.reporting import tables
from data_builders.cephalograms.landmarks import BONE, DEPTHS, LANDMARKS
from data_builders.cranio_phantom import cohort, head
from data_builders.cranio_phantom.skull import LANDMARKS as skull_landmarks
from data_builders.cranio_phantom.skull import from_template
from data_builders.rendering.volume import project_point, ray_points
from tests.data_builders.test_cephalograms import PLACES, write_list


@pytest.fixture
def config(tmp_path):
    config = demo.get_config()
    config.data.data_dir = str(tmp_path / "records")
    config.data.cephalograms.update(manifest=str(tmp_path / "list.csv"), text="keep")
    config.evaluate.bootstrap = 20
    return config


def people_of(count, seed=0):
    """Made-up people whose lips are as thick as their jaws are long, by a rule and some noise."""
    rng = np.random.default_rng(seed)
    landmarks = np.array([PLACES[name] for name in LANDMARKS], float)
    landmarks = landmarks + rng.normal(0, 6, (count, len(LANDMARKS), 2))
    length = landmarks[:, LANDMARKS.index("pogonion"), 1] - landmarks[:, 1, 1]
    truth = 10 + 0.2 * (length[:, None] - length.mean()) + rng.normal(0, 0.3, (count, 4))
    subjects = [f"s{i // 2}" for i in range(count)]
    return depths.People([], subjects, np.full(count, 0.5), landmarks, truth, unknown=0)


def test_depths_are_those_of_the_list(config, tmp_path):
    write_list(tmp_path, people=6, mm_per_pixel=0.2, sex="m", age=33)
    people = depths.read_people(config)
    assert len(people.examples) == 6 and people.unknown == 5
    expected = [
        np.hypot(*np.subtract(PLACES[skin], PLACES[bone])) for bone, skin in DEPTHS.values()
    ]
    by_mm = sorted(people.truth.tolist(), key=sum)
    np.testing.assert_allclose(by_mm[0], 0.1 * np.array(expected), rtol=1e-5)
    np.testing.assert_allclose(by_mm[-1], 0.2 * np.array(expected), rtol=1e-5)


def test_a_perfect_face_has_no_error(config, tmp_path):
    """Faces whose profile runs through the true skin."""
    write_list(tmp_path, people=5)
    config.data.cephalograms.mm_per_pixel = 0.6
    people = depths.read_people(config)
    faces = np.full((5, 128, 128, 3), 210, np.uint8)
    for face, landmarks in zip(faces, people.landmarks, strict=True):
        skin = [landmarks[LANDMARKS.index(name)] for _, name in DEPTHS.values()]
        columns, rows = np.array(sorted(skin, key=lambda place: place[1])).T
        for row, edge in enumerate(np.interp(np.arange(128), rows, columns)):
            face[row, : round(edge + 0.5)] = (180, 130, 100)
        face[:20] = 210
    found = depths.measure(people, faces)
    assert np.abs(found - people.truth).max() < 0.8 * people.mm[0]
    # An outline is measured as a face is.
    heads = np.uint8(255 * (faces[..., :1] != 210))
    alone = depths.measure(people, np.repeat(heads, 3, -1))
    np.testing.assert_allclose(alone, found, atol=0.01)


# Landmarks on bone in the middle plane, and the directions towards skin: to the front and upwards.
TOWARDS = {
    "glabella": (1, 0),
    "prosthion": (1, 0),
    "infradentale": (1, 0),
    "supramentale": (1, 0),
    "pogonion": (1, 0),
    "anterior nasal spine": (0.8, -0.6),
}


def in_front(field, places):
    """Returns where no part of a head lies beside places, within 24 mm of the middle plane."""
    beside = np.arange(-24.0, 25.0, 2.0)[:, None] * np.array([1.0, 0.0, 0.0])
    around = np.float32(places[..., None, :] + beside)
    return np.asarray(field(tuple(np.moveaxis(around, -1, 0)))).min(-1) > 0


@jax.numpy_rank_promotion("allow")  # as the cohort is made
@pytest.mark.parametrize("index", [0, 1, 2])
def test_depths_are_those_of_the_geometry(index):
    """Six depths of procedural heads at 128 pixels, against the distance field they are made of.

    They are measured in the portrait, and in a silhouette that is drawn without the renderer: along
    one ray, and along the shortest within 30 degrees.
    """
    skull, tissue, colour = cohort.appearance(cohort.draw(7, index), 45, 0, cohort.Spread())
    field = jax.jit(lambda places: head.outer_distance(places, skull, tissue))
    frame = head.frame(128)
    template = np.float32([skull_landmarks[name] for name in TOWARDS])
    bone = np.array(from_template(tuple(template.T), skull)).T
    towards = np.array([[0.0, *direction] for direction in TOWARDS.values()])

    # Where rays leave the head; the one in the middle is not turned.
    steps = np.arange(0.0, 40.0, 0.1)
    cos, sin = (part(np.deg2rad(np.linspace(-30, 30, 13)))[:, None] for part in (np.cos, np.sin))
    y, z = towards[:, 1], towards[:, 2]
    rays = np.stack([np.zeros((13, 6)), cos * y - sin * z, sin * y + cos * z], -1)
    left = [
        in_front(field, bone[:, None] + steps[:, None] * ray[:, None]).argmax(1) for ray in rays
    ]
    truths = {0.0: steps[left[6]], np.pi / 6: steps[np.min(left, 0)]}

    # A picture of it: the share of each pixel that the head covers, by 4 x 4 rays.
    seen = np.asarray(ray_points(head.frame(512), "lateral", jnp.zeros((512, 512))))
    cover = ~np.concatenate([in_front(field, part) for part in np.split(seen, 16)])
    share = cover.reshape(128, 4, 128, 4).mean((1, 3))[..., None]
    silhouette = share * np.array([200.0, 150, 120]) + (1 - share) * np.array([200.0, 210, 220])
    portraits = head.portraits(skull, tissue, colour, 128)
    portrait = np.round(255 * np.asarray(portraits.faces[1]))

    ends = [project_point(frame, "lateral", jnp.float32(mm)) for mm in (bone, bone + towards)]
    for face in (silhouette, portrait):
        as_batch = [jnp.float32(value)[None] for value in (face, *ends, 40.0 / frame.pixel)]
        for spread, truth in truths.items():
            found = np.asarray(measured(*as_batch, jnp.full(6, spread)))[0] * frame.pixel
            assert np.abs(found - truth).max() < 1.0

    # The masks of the portraits are the same silhouettes.
    rays = np.asarray(ray_points(head.frame(256), "frontal", jnp.zeros((256, 256))))
    along = np.arange(-120.0, 130.0, 2.0)[:, None] * np.array([0.0, 1.0, 0.0])
    pieces = [np.float32(part[..., None, :] + along) for part in np.split(rays, 16)]
    met = np.concatenate(
        [np.asarray(field(tuple(np.moveaxis(p, -1, 0)))).min(-1) < 0 for p in pieces]
    )
    frontal = met.reshape(128, 2, 128, 2).mean((1, 3))[..., None]
    for mask, truth in zip(portraits.masks, (frontal >= 0.5, share >= 0.5), strict=True):
        assert (mask != truth).sum() < 0.01 * truth.sum()


def test_too_few_people_and_methods_without_x_rays(config, tmp_path):
    write_list(tmp_path, people=4)
    with pytest.raises(InputError, match="4 people have all of a_point, lower_incisor"):
        depths.check(config)
    config.method.name = "siamese"
    with pytest.raises(InputError, match="siamese does not make faces of X-rays"):
        depths.check(config)


def test_a_run_with_other_data_is_not_scored(config, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="set data.cephalograms.manifest"):
        depths.score_published(config, tmp_path)


def test_rivals_know_the_others_only():
    people = people_of(40)
    found = depths.rivals(people)
    subjects = np.array(people.subjects)
    for i in (0, 17, 39):
        others = subjects != subjects[i]
        np.testing.assert_allclose(found[depths.MEAN_DEPTH][i], people.truth[others].mean(0))

    # The person's own truth changes nothing.
    changed = people._replace(truth=people.truth + 50 * (subjects == "s3")[:, None])
    again = depths.rivals(changed)
    for name, rows in found.items():
        np.testing.assert_allclose(rows[subjects == "s3"], again[name][subjects == "s3"])

    # The regression finds the rule, as one with a small penalty does.
    errors = {name: np.abs(rows - people.truth).mean() for name, rows in found.items()}
    assert errors[depths.RIDGE] < 0.6 * errors[depths.MEAN_DEPTH]
    others = subjects != "s0"
    expected = ridge_of(frankfurt(people), people.truth, others)
    np.testing.assert_allclose(found[depths.RIDGE][~others], expected, rtol=1e-4)


def test_without_a_frankfurt_plane_there_is_no_regression():
    people = people_of(10)
    people.landmarks[3, LANDMARKS.index("porion")] = np.nan
    assert set(depths.rivals(people)) == {depths.MEAN_DEPTH}


def frankfurt(people):
    """Returns the landmarks on bone in mm from the nasion, along the Frankfurt plane."""
    at = {name: people.landmarks[:, i] for i, name in enumerate(LANDMARKS)}
    angle = np.arctan2(*(at["orbitale"] - at["porion"]).T[::-1])
    turn = np.moveaxis(
        np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]), -1, 0
    )
    offsets = [at[name] - at["nasion"] for name in BONE if name != "nasion"]
    return np.concatenate([np.einsum("nij,nj->ni", turn, o) for o in offsets], 1) * 0.5


def ridge_of(features, truth, known):
    """Returns predictions for the unknown, with the penalty of least leave-one-out error."""
    centre, scale = features[known].mean(0), features[known].std(0)
    x = (features - centre) / scale
    mean = truth[known].mean(0)
    best = np.inf
    for penalty in np.logspace(-1, 4, 11):
        inverse = np.linalg.inv(x[known].T @ x[known] + penalty * np.eye(x.shape[1]))
        hat = x[known] @ inverse @ x[known].T + 1 / known.sum()
        residual = truth[known] - mean - x[known] @ inverse @ x[known].T @ (truth[known] - mean)
        error = ((residual / (1 - np.diag(hat))[:, None]) ** 2).mean()
        if error < best:
            best = error
            found = mean + x[~known] @ inverse @ x[known].T @ (truth[known] - mean)
    return found


def test_tables_tell_what_was_hidden():
    row = {site: Estimate(mean=2.0, low=1.5, high=2.5) for site in (*DEPTHS, depths.ALL)}
    found = Depths(
        rows={"cranio_diff": row, depths.MEAN_DEPTH: row},
        differences={f"cranio_diff minus {depths.MEAN_DEPTH}": row},
        images=30,
        subjects=29,
        masked=True,
        unknown=30,
        by_subject=BySubject(subjects=[], rows={}),
    )
    first, second = tables._depths(results := results_with(found))
    assert "30 X-rays of 29 real people" in first.title
    assert first.head == ["A point", "upper lip", "lower lip", "chin", "all"]
    assert any("as if the skulls were dry" in note for note in first.notes)
    assert any("prompts of 30" in note for note in first.notes)
    assert second.rows[0][1][0].value == "+2.00"
    again = from_json(to_json(results), Results)
    assert again.depths == found


def results_with(found):
    return Results(
        rows={},
        differences={},
        depths=found,
        by_subject=BySubject(subjects=[], rows={}),
        retrieval={},
        images=30,
        networks={},
        not_computed={},
        resizing="",
        config={"name": "demo"},
        seed=0,
        versions={},
        devices="",
        commit="",
    )
