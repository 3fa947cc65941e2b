"""The procedural cohort: its subjects, what determines a face, and the files it writes."""

import collections

import jax
import numpy as np
import pytest
from PIL import Image

from data_builders.cranio_phantom import cohort, exposures, head, skull, tissue
from data_builders.cranio_phantom.cranio_phantom_dataset_builder import (
    Builder,
    PhantomConfig,
    subject_records,
)

SPREAD = cohort.Spread()


def portraits(subject, age=45, change=0, size=64):
    return np.asarray(head.portraits(*cohort.appearance(subject, age, change, SPREAD), size)[0])


def xrays(subject, size=64):
    look = cohort.appearance(subject, cohort.REFERENCE_AGE, cohort.REFERENCE_BMI_CHANGE, SPREAD)
    return np.asarray(head.radiographs(*look[:2], size, 2.0))


@pytest.mark.parametrize("subjects", [3, 7, 24, 120, 121])
def test_splits_hold_each_subject_once(subjects):
    splits = cohort.split(0, subjects)
    assert sorted(splits["train"] + splits["test"]) == list(range(subjects))
    assert len(splits["test"]) == (subjects + 3) // 6


def test_splits_hold_both_sexes():
    for members in cohort.split(0, 120).values():
        women = sum(cohort.sex_of(0, i) == "female" for i in members)
        assert women == len(members) - women


def test_too_few_subjects():
    with pytest.raises(ValueError, match="subjects=2: the split 'test' would be empty"):
        PhantomConfig(subjects=2)


def test_a_subject_does_not_depend_on_the_others():
    again = cohort.draw(0, 5)
    np.testing.assert_array_equal(cohort.draw(0, 5).skull.shape, again.skull.shape)
    assert not np.array_equal(cohort.draw(1, 5).skull.shape, again.skull.shape)


def test_skull_warp_is_inverted():
    subject = cohort.draw(0, 3)
    places = tuple(np.array(list(skull.LANDMARKS.values()), np.float32).T)
    there = skull.from_template(places, subject.skull)
    for back, place in zip(skull.to_template(there, subject.skull), places, strict=True):
        np.testing.assert_allclose(back, place, atol=0.05)


def test_age_and_weight_leave_the_skull_alone():
    subject = cohort.draw(0, 4)
    young, old = (
        cohort.appearance(subject, age, change, SPREAD) for age, change in ((25, -10), (65, 10))
    )
    for a, b in zip(young[0], old[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(young[1].depth != old[1].depth) and young[2].grey < old[2].grey


def test_heavier_is_thicker_where_the_tables_say_so():
    subject = cohort.draw(0, 4)
    lean, heavy = (
        dict(
            zip(
                (d.name for d in tissue.DEPTHS),
                cohort.appearance(subject, 45, c, SPREAD)[1].depth,
                strict=True,
            )
        )
        for c in (-10, 10)
    )
    growth = {name: heavy[name] / lean[name] for name in lean}
    assert growth["gonion"] > 1.25 and growth["forehead"] < 1.15


def test_tissue_depth_at_the_landmarks():
    """Soft-tissue depths of an average head agree with the tables within 3 mm on average.

    Depths are measured from the bone outwards.
    """
    average = cohort.Subject(
        "male",
        cohort.draw(0, 0).skull._replace(shape=np.zeros(len(skull.MODES))),
        np.zeros(len(tissue.DEPTHS)),
        dict.fromkeys(cohort._SOFT, 0.0),
        dict.fromkeys(cohort._LOOK, 0.0),
    )
    _, soft, _ = cohort.appearance(average, 45, 0, SPREAD)
    errors = {}
    for landmark in tissue.DEPTHS:
        place = tuple(np.float32(v) for v in landmark.place)
        errors[landmark.name] = -float(tissue.skin(place, soft)) - landmark.mean
    assert np.mean(np.abs(list(errors.values()))) < 3.0, errors
    assert (
        abs(errors["glabella"]) < 2.5 and abs(errors["vertex"]) < 2 and abs(errors["pogonion"]) < 3
    ), errors


def test_xray_shows_bone_between_air():
    frontal, lateral = xrays(cohort.draw(0, 0))
    for picture in (frontal, lateral):
        assert picture[:, :2].max() < 0.05 and 0.9 < picture.max() <= 1.0
    assert np.abs(frontal - frontal[:, ::-1]).mean() < 0.03  # symmetric except for noise and skew
    assert np.abs(frontal - frontal[:, ::-1]).mean() > 1e-4


def test_brain_is_darker_than_its_wall_and_the_sinus_darker_than_bone():
    sub = cohort.draw(0, 1)
    volume = head.volume(*cohort.appearance(sub, 45, 0, SPREAD)[:2], 2.0)

    def at(place):
        there = np.array(
            [float(v) for v in skull.from_template(tuple(np.float32(p) for p in place), sub.skull)]
        )
        return float(volume.values[tuple(np.round((there - volume.origin) / 2).astype(int))])

    assert -20 < at((10, 0, 60)) < 80  # brain
    assert at((28, 62, -13)) < -700  # maxillary sinus
    assert at((16, 72, -90)) > 300  # mandible
    assert at((0, 0, 135)) == -1000  # above the head


def test_portraits_are_faces_on_a_plain_ground():
    frontal, lateral = portraits(cohort.draw(0, 1))
    for picture in (frontal, lateral):
        assert np.ptp(picture[0, 0]) < 0.2 and picture[32, 30].std() > 0.02
    assert np.abs(frontal - frontal[:, ::-1]).mean() < 0.06


def test_another_portrait_compiles_nothing():
    """Each has its own number of rays; a program for each would take longer than the rays."""
    portraits(cohort.draw(0, 1))
    compiled = []

    def hear(event, duration, **_):
        if "backend_compile" in event:
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        portraits(cohort.draw(0, 2), age=25, change=10)
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
    assert not compiled


def test_the_skull_says_more_than_the_rest():
    """A face depends more on the skull than on soft tissue and colours.

    So the task can be solved.
    """
    people = [cohort.draw(0, i) for i in range(1, 13, 2)]  # one sex
    own = [portraits(p) for p in people]
    other = [portraits(cohort.with_other_traits(p, 50 + i)) for i, p in enumerate(people)]
    distance = np.array([[((a - b) ** 2).mean() for b in own] for a in other])
    assert np.diag(distance).mean() < 0.6 * distance[~np.eye(len(people), dtype=bool)].mean()


def test_records_are_reproducible_and_complete():
    config = PhantomConfig(size=32, pairing="all_views", subjects=12)
    one, again = (dict(subject_records(config, 2)) for _ in range(2))
    assert len(one) == 36
    for key, record in one.items():
        assert record["xray"].getvalue() == again[key]["xray"].getvalue()
        assert record["face"].getvalue() == again[key]["face"].getvalue()
    # One X-ray for each view at every age and BMI.
    assert len({r["xray"].getvalue() for r in one.values()}) == 2
    assert len({r["face"].getvalue() for r in one.values()}) == 18
    matched = dict(subject_records(PhantomConfig(size=32, subjects=12), 2))
    assert len(matched) == 18 and all(r["xray_view"] == r["face_view"] for r in matched.values())
    few = dict(subject_records(PhantomConfig(size=32, subjects=12, appearances=2), 2))
    assert len(few) == 4
    assert all(few[key]["face"].getvalue() == matched[key]["face"].getvalue() for key in few)


def test_appearances_are_of_all_kinds():
    """Each person has pairs of age and BMI of their own; all nine occur."""
    drawn = [cohort.conditions(0, i, 3) for i in range(60)]
    assert all(len(set(pairs)) == 3 for pairs in drawn)
    counts = collections.Counter(pair for pairs in drawn for pair in pairs)
    assert len(counts) == 9 and min(counts.values()) >= 10


def test_people_of_networks_are_in_no_cohort():
    """No skull of one is a skull of the other, with the same seed or another."""
    skulls = {
        people: {
            cohort.draw(seed, index, people).skull.shape.tobytes()
            for seed in range(8)
            for index in range(60)
        }
        for people in cohort.PEOPLE
    }
    assert len(skulls["cohort"]) == len(skulls["networks"]) == 480
    assert not skulls["cohort"] & skulls["networks"]


def test_landmarks_lie_on_the_head():
    config = PhantomConfig(size=64, subjects=12)
    record = next(r for _, r in subject_records(config, 2) if r["xray_view"] == "lateral")
    names = list(skull.LANDMARKS)

    def at(name):
        return record["xray_landmarks"][names.index(name)]

    assert at("menton")[1] > at("nasion")[1] > at("vertex")[1]
    assert at("opisthocranion")[0] < at("basion")[0] < at("nasion")[0]


def test_settings_make_the_name():
    assert PhantomConfig().name == "matched_64"
    assert (
        PhantomConfig(size=128, pairing="all_views", subjects=24, seed=3).name
        == "all_views_128-n24-seed3"
    )
    assert PhantomConfig(people="networks", appearances=3).name == "matched_64-networks-faces3"
    with pytest.raises(ValueError, match="people='nobody' is not one of cohort, networks"):
        PhantomConfig(people="nobody")
    with pytest.raises(ValueError, match="appearances=10 is not in 1..9"):
        PhantomConfig(appearances=10)
    assert {c.name for c in Builder.BUILDER_CONFIGS} == {
        f"{p}_{s}" for p in ("matched", "all_views") for s in (64, 128, 256)
    }


@pytest.fixture(scope="module")
def varied():
    """Records of a subject with three faces: plain, with varied X-rays, and with dry ones."""
    settings = [{}, dict(vary_xrays=True), dict(vary_xrays=True, dry=1.0)]
    configs = [PhantomConfig(size=64, subjects=6, appearances=3, **s) for s in settings]
    return [dict(subject_records(config, 1)) for config in configs], configs


def picture(record, name="xray"):
    return np.asarray(Image.open(record[name])).astype(int)


def test_varied_x_rays_differ_for_each_face(varied):
    (plain, changed, _), configs = varied
    assert [config.name for config in configs] == [
        *("matched_64-n6-faces3", "matched_64-n6-faces3-varied"),
        "matched_64-n6-faces3-varied-dry1",
    ]
    assert plain.keys() == changed.keys()
    for records, number in ((plain, 1), (changed, 3)):
        lateral = [picture(r) for r in records.values() if r["xray_view"] == "lateral"]
        assert len({xray.tobytes() for xray in lateral}) == number
    for key in plain:
        np.testing.assert_array_equal(picture(plain[key], "face"), picture(changed[key], "face"))
        # The head stays where it is.
        pair = picture(plain[key]).ravel(), picture(changed[key]).ravel()
        assert np.corrcoef(*pair)[0, 1] > 0.9
        moved = np.abs(plain[key]["xray_landmarks"] - changed[key]["xray_landmarks"])
        assert 0.02 < moved.max() < 2.0


def test_dry_x_rays_have_no_neck(varied):
    (_, changed, dry), _ = varied
    for key in changed:
        assert picture(dry[key])[-4:, :20].max() < 5  # beside the spine
        assert (picture(dry[key]) > 60).mean() > 0.03
        assert (picture(changed[key]) > 20).mean() > 1.3 * (picture(dry[key]) > 20).mean()
        np.testing.assert_array_equal(picture(changed[key], "face"), picture(dry[key], "face"))


def test_masks_of_x_rays_hold_soft_tissue(varied):
    """They are those of the living head, as its X-ray shows it; a dry skull's too."""
    (plain, changed, dry), _ = varied
    for key in changed:
        mask = picture(changed[key], "xray_mask")
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(mask, picture(dry[key], "xray_mask"))
        # A seam of tissue is too thin to be seen, and processing darkens what is beside bone.
        for records in (plain, changed):
            mask = picture(records[key], "xray_mask") > 0
            seen = picture(records[key]) > 3
            assert (seen & ~mask).mean() < 0.01 and (mask & ~seen).mean() < 0.03
        # Unlike the portrait's mask, it has no hair and is of the reference age.
        assert (mask != (picture(changed[key], "head_mask") > 0)).mean() > 0.005


def test_metal_is_in_teeth():
    """Every metal tooth lies between nose and chin, near the front, and is as dense as metal."""
    subject = cohort.draw(0, 3)
    look = cohort.appearance(subject, 45, 0, SPREAD)
    volume = head.volume(*look[:2], 2.5)
    draws = [exposures.draw(np.random.default_rng(seed), look.skull) for seed in range(12)]
    counts = [(draw.metal[:, 3] > 0).sum() for draw in draws]
    assert 0 in counts and max(counts) == 28
    for draw, count in zip(draws, counts, strict=True):
        values = np.asarray(exposures.with_metal(volume, draw.metal).values)
        metal = np.argwhere(values > 5000) * 2.5 + np.asarray(volume.origin)
        assert (len(metal) > 0) == (count > 0) and len(metal) < 4000
        if count:
            low, high = metal.min(0), metal.max(0)
            assert np.abs(metal[:, 0]).max() < 40 and low[1] > 15 and high[1] < 105
            assert low[2] > -75 and high[2] < -20


def test_a_share_of_dry_x_rays():
    with pytest.raises(ValueError, match=r"dry=2 is not in 0\.\.1"):
        PhantomConfig(dry=2)
