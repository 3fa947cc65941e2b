"""Synthesized faces are compared with the right photographs and the right true faces."""

import numpy as np
import pytest

from cranio_jax.errors import InputError
from launch.measure import prompt_words, synthesis

PROFILES = [(a, b) for a in (25.0, 45.0, 65.0) for b in (-10.0, 0.0, 10.0)]


def example(subject, view, age, change):
    face = np.full((32, 32, 3), int(age + change), np.uint8)
    return dict(subject=subject, face_view=view, sex="male", age=age, bmi_change=change, face=face)


def examples(profiles=PROFILES):
    views = ("lateral", "frontal")
    return [example(who, v, *p) for who in ("s1", "s0", "s2") for v in views for p in profiles]


def test_each_true_face_has_the_photograph_of_its_person_and_view():
    wanted, photographs = synthesis._pairs(examples(), people=2)
    assert len(wanted) == 2 * 2 * 8 and {e["subject"] for e in wanted} == {"s0", "s1"}
    for face, photo in zip(wanted, photographs, strict=True):
        assert (photo["age"], photo["bmi_change"]) == (45, 0) != (face["age"], face["bmi_change"])
        assert all(face[name] == photo[name] for name in ("subject", "face_view"))


@pytest.mark.parametrize(
    ("profiles", "words"), [([(45.0, 0.0)], "one face each"), ([(25.0, 0.0)], "lack faces of 45")]
)
def test_records_without_true_faces(profiles, words):
    with pytest.raises(InputError, match=words):
        synthesis._pairs(examples(profiles), people=2)


@pytest.fixture
def found():
    """Faces of two people; the second looks like the first. All readings move by half."""
    wanted, photographs = synthesis._pairs(examples(), people=2)
    made = prompt_words.known(wanted, np.stack([e["face"] for e in wanted]))
    identity = np.eye(4)[[0 if who == "s0" else 1 for who in made.subjects]]
    resembling = np.where((made.subjects == "s1")[:, None], np.eye(4)[0], identity)
    return synthesis.Found(
        made=made,
        photographs=np.stack([e["face"] for e in photographs]),
        truth=made.pictures + 100,
        right_person=synthesis.nearest_is_own(resembling, identity, made),
        read={
            "age": (made.attributes["age"] - 45) / 2,
            "bmi_change": -made.attributes["bmi_change"] / 2,  # in the wrong direction
        },
        lpips={"lpips/x": (np.full(32, 0.1), 0.1 + 0.01 * np.abs(made.attributes["bmi_change"]))},
    )


def test_tables(found):
    lines = synthesis.text(found).splitlines()
    assert lines[0] == "| 32 faces of 2 people | faces made |"
    assert lines[2].endswith("| 0.500 [0.000, 1.000] |")
    assert lines[3].endswith("| 1.000 [1.000, 1.000] |")
    assert lines[4].endswith("| 0.000 [0.000, 0.000] |")
    rows = {line.split("|")[1].strip(): line for line in lines[5:] if line}
    assert "| 0.100 [0.100, 0.100] | 0.200 [0.200, 0.200] | -0.100" in rows["another weight"]
    assert rows["another age"].endswith("| +0.000 [+0.000, +0.000] |")


def test_a_view_of_another_kind_is_no_rival():
    """The nearest of all photographs is the other person's, of the other view."""
    both = [example(who, v, 25.0, 0.0) for who, v in (("s0", "frontal"), ("s1", "lateral"))]
    made = prompt_words.known(both, np.stack([e["face"] for e in both]))
    vectors = np.eye(2)
    assert synthesis.nearest_is_own(vectors, vectors[::-1], made).all()


def test_sheet(found):
    page = np.asarray(synthesis.sheet(found))
    assert page.shape == (20 + 8 * 32, 9 * 32, 3)
    assert page[20 + 5, 5, 0] == 45  # the photograph
    assert page[20 + 5, 32 + 5, 0] == 15 and page[20 + 32 + 5, 32 + 5, 0] == 115
