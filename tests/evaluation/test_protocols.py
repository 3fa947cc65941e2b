"""Retrieval as a whole: protocols, ceiling, chance and controls on vectors with known results."""

import msgspec
import numpy as np
import pytest

from configs import common
from cranio_jax.errors import InputError
from cranio_jax.evaluation.controls import SHUFFLED
from cranio_jax.evaluation.retrieval import CEILING, chance, retrieval
from cranio_jax.metrics.retrieval import Faces

SUBJECTS, VIEWS, VARIANTS = 10, ("frontal", "lateral"), 3


@pytest.fixture
def config():
    c = common.get_config()
    c.evaluate.bootstrap = 500
    c.evaluate.retrieval.ks = (1, 3)
    return c


@pytest.fixture
def who():
    return [
        {"subject": f"s{s}", "view": v, "variant": str(k)}
        for s in range(SUBJECTS)
        for v in VIEWS
        for k in range(VARIANTS)
    ]


def retrieved(*arguments):
    """Returns the results of each protocol as JSON."""
    return msgspec.to_builtins(retrieval(*arguments))


def vectors(who, noise, seed, shift=0):
    """Returns a noisy direction for each subject, or for another one if `shift` is not 0."""
    people = np.random.default_rng(0).standard_normal((SUBJECTS, 32))
    rng = np.random.default_rng(seed)
    index = (np.array([int(w["subject"][1:]) for w in who]) + shift) % SUBJECTS
    return people[index] + noise * rng.standard_normal((len(who), 32))


def test_good_faces_bad_faces_and_the_ceiling(config, who):
    truth = vectors(who, 0.1, 1)
    kinds = {"ours": vectors(who, 0.2, 2), SHUFFLED: vectors(who, 0.2, 3, shift=1)}
    found = retrieved(config, who, truth, kinds, None, "ours")
    assert list(found) == list(config.evaluate.retrieval.protocols)
    for name, part in found.items():
        assert (
            part["gallery"]
            == {"all": 60, "one": 20 if name == "same/one" else 10}[name.split("/")[1]]
        )
        assert part["seen"] == {"same/all": 30, "same/one": 10, "any/all": 60, "any/one": 10}[name]
        assert (
            part["rows"]["ours"]["recall@1"]["mean"]
            == part["rows"][CEILING]["recall@1"]["mean"]
            == 1.0
        )
        assert part["rows"][SHUFFLED]["recall@1"]["mean"] == 0.0
        assert (
            part["against"]["recall@1"]["mean"] == 1.0 and part["against"]["recall@1"]["p"] < 0.01
        )
        assert part["chance"]["recall@1"] == pytest.approx(0.1)
        assert part["curves"]["ours"][0] == 1.0 and part["curves"][SHUFFLED][-1] == 1.0


def test_the_ceiling_does_not_find_the_picture_itself(config, who):
    # Vectors of pure noise: a picture matches itself, but no other picture of its subject.
    truth = np.random.default_rng(1).standard_normal((len(who), 400))
    config.evaluate.retrieval.protocols = ("same/all", "any/all")
    found = retrieved(config, who, truth, {"itself": truth}, None, "itself")
    for part in found.values():
        assert (
            part["rows"]["itself"]["recall@1"]["mean"] == 1.0
            and part["rows"][CEILING]["recall@1"]["mean"] < 0.3
        )
    # With one picture of each subject there is no other picture to find.
    alone = [{"subject": f"s{i}", "view": "", "variant": ""} for i in range(len(who))]
    assert list(
        retrieved(config, alone, truth, {"itself": truth}, None, "itself")["any/all"]["rows"]
    ) == ["itself"]


def test_distractors_come_before_nobody(config, who):
    truth = vectors(who, 0.1, 1)
    ours = vectors(who, 1.5, 2)
    alone = retrieved(config, who, truth, {"ours": ours}, None, "ours")
    crowd = np.random.default_rng(5).standard_normal((400, 32))
    others = Faces(crowd, [f"distractor {i // 4}" for i in range(400)], list(VIEWS) * 200)
    crowded = retrieved(config, who, truth, {"ours": ours}, others, "ours")
    for name, part in crowded.items():
        assert (
            part["seen"]
            == alone[name]["seen"]
            + {"same/all": 200, "same/one": 100, "any/all": 400, "any/one": 100}[name]
        )
        assert (
            part["rows"]["ours"]["recall@3"]["mean"]
            < alone[name]["rows"]["ours"]["recall@3"]["mean"]
        )
        assert part["chance"]["recall@1"] < alone[name]["chance"]["recall@1"]


def test_chance_is_what_random_lists_find():
    same, allowed = np.zeros((1, 12), bool), np.ones((1, 12), bool)
    same[0, :3] = True
    allowed[0, 10:] = False
    rng = np.random.default_rng(0)
    hits = np.mean([rng.permutation(10)[:4].min() < 3 for _ in range(20_000)])
    assert chance(same, allowed, 4) == pytest.approx(hits, abs=0.01)


def test_a_query_without_its_subject(config, who):
    truth = vectors(who, 0.1, 1)
    config.evaluate.retrieval.ks = (1, 31)
    with pytest.raises(InputError, match="k=31 exceeds a gallery of 30 faces"):
        retrieved(config, who, truth, {"ours": truth}, None, "ours")
    truth[3] = np.nan
    config.evaluate.retrieval.ks = (1,)
    with pytest.raises(InputError, match="a vector of the queries is zero or not finite"):
        retrieved(config, who, truth, {"ours": truth}, None, "ours")
