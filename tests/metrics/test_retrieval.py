"""Retrieval against trec_eval and closed forms; ties, protocols and what can't be scored."""

import numpy as np
import pytest
import pytrec_eval
from scipy import stats

from cranio_jax.errors import InputError
from cranio_jax.metrics import retrieval
from cranio_jax.metrics.retrieval import Faces

KS = (1, 3, 5, 10)


def cohort(rng, noise, subjects=12, each=4, width=16):
    """`(queries, gallery)` of noisy views of the same directions."""
    people = rng.standard_normal((subjects, width))
    names = [f"p{i:02d}" for i in range(subjects)]
    views = ["frontal", "lateral"] * (each // 2)

    def faces():
        return Faces(
            (people[:, None] + noise * rng.standard_normal((subjects, each, width))).reshape(
                -1, width
            ),
            [n for n in names for _ in range(each)],
            views * subjects,
        )

    return faces(), faces()


@pytest.mark.parametrize("view", retrieval.VIEWS)
@pytest.mark.parametrize("images", ("one", "all"))
def test_against_trec_eval(view, images):
    queries, gallery = cohort(np.random.default_rng(0), 2.0)
    if images == "one":
        gallery = gallery.take(retrieval.one_image(gallery, view, seed=1))
        assert len(gallery.subjects) == 12 * (2 if view == "same" else 1)
    cosines, same, allowed = retrieval.similarities(queries, gallery, view)
    got = retrieval.at_k(retrieval.ranked(cosines, same, allowed), allowed, KS)
    judged, run = {}, {}
    for q in range(len(cosines)):
        seen = np.flatnonzero(allowed[q])
        judged[str(q)] = {str(g): int(same[q, g]) for g in seen}
        run[str(q)] = {str(g): float(cosines[q, g]) for g in seen}
    wanted = pytrec_eval.RelevanceEvaluator(
        judged, {"success.1,3,5,10", "map_cut.1,3,5,10", "recip_rank", "num_rel"}
    ).evaluate(run)

    def column(name):
        return np.array([wanted[str(q)][name] for q in range(len(cosines))])

    for k in KS:
        np.testing.assert_allclose(got[f"recall@{k}"], column(f"success_{k}"), atol=1e-6)
        relevant = column("num_rel")
        np.testing.assert_allclose(
            got[f"map@{k}"], column(f"map_cut_{k}") * relevant / np.minimum(relevant, k), atol=1e-6
        )
        np.testing.assert_allclose(
            got[f"mrr@{k}"],
            np.where(column("recip_rank") >= 1 / k - 1e-9, column("recip_rank"), 0),
            atol=1e-6,
        )
    assert 0.05 < got["recall@1"].mean() < 0.95
    curve = retrieval.match_curve(retrieval.ranked(cosines, same, allowed))
    assert curve[4] == pytest.approx(got["recall@5"].mean()) and curve[-1] == 1.0


def test_one_vector_for_all_finds_nobody():
    queries, gallery = cohort(np.random.default_rng(0), 1.0)

    def alike(faces):
        return faces._replace(vectors=np.ones_like(faces.vectors))

    cosines, same, allowed = retrieval.similarities(alike(queries), alike(gallery))
    values = retrieval.at_k(retrieval.ranked(cosines, same, allowed), allowed, KS)
    assert all(not value.any() for value in values.values())
    assert retrieval.separation(cosines, same, allowed) == {"d_prime": 0.0, "eer": 0.5}


def test_a_perfect_and_a_partly_tied_list():
    same = np.array([[True, False, False, True]])
    allowed = np.ones_like(same)
    hits = retrieval.ranked(np.array([[0.9, 0.1, 0.2, 0.8]]), same, allowed)
    np.testing.assert_array_equal(hits, [[True, True, False, False]])
    tied = retrieval.ranked(np.array([[0.9, 0.9, 0.2, 0.8]]), same, allowed)
    np.testing.assert_array_equal(tied, [[False, True, True, False]])
    unseen = retrieval.ranked(
        np.array([[0.9, 0.99, 0.2, 0.8]]), same, np.array([[True, False, True, True]])
    )
    np.testing.assert_array_equal(unseen, [[True, True, False, False]])


@pytest.mark.parametrize("d", [0.0, 1.0, 3.0])
def test_separation_of_two_normal_distributions(d):
    rng = np.random.default_rng(0)
    same = np.repeat([[True], [False]], 100_000, 1)
    cosines = rng.standard_normal(same.shape) + d * same
    found = retrieval.separation(cosines, same, np.ones_like(same))
    assert found["d_prime"] == pytest.approx(d, abs=0.02)
    assert found["eer"] == pytest.approx(stats.norm.cdf(-d / 2), abs=0.005)


def test_what_can_not_be_scored():
    queries, gallery = cohort(np.random.default_rng(0), 1.0)
    with pytest.raises(InputError, match="no face of the query's subject p10"):
        retrieval.similarities(queries, gallery.take(np.arange(40)))
    with pytest.raises(InputError, match="a vector of the queries is zero or not finite"):
        retrieval.similarities(queries._replace(vectors=queries.vectors * np.nan), gallery)
    with pytest.raises(InputError, match="view='side' is not one of same, any"):
        retrieval.similarities(queries, gallery, "side")
    cosines, same, allowed = retrieval.similarities(queries, gallery, "same")
    with pytest.raises(InputError, match="k=25 exceeds a gallery of 24 faces"):
        retrieval.at_k(retrieval.ranked(cosines, same, allowed), allowed, (1, 25))
    alone = [0, 1, 2, 3]
    with pytest.raises(InputError, match="only the query's subject"):
        retrieval.separation(
            cosines[np.ix_(alone, alone)], same[np.ix_(alone, alone)], allowed[np.ix_(alone, alone)]
        )
