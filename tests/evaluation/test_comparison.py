"""Several methods and seeds in one table: means and paired differences.

The tests also cover which subjects are included, and results that can't be compared.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
from concurrent import futures

import numpy as np
import pytest

from cranio_jax.errors import InputError
from cranio_jax.evaluation.comparison import compare
from cranio_jax.evaluation.results import BySubject, Depths, Results, from_json, to_json
from cranio_jax.evaluation.retrieval import CEILING
from cranio_jax.metrics.estimates import Estimate
from cranio_jax.reporting import tables
from launch import study as launched

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUBJECTS = [f"s{i}" for i in range(6)]


def results(row, psnr, recall, fid=None, judge="judge", data="cohort"):
    """Returns the part of evaluate.py's results that a comparison reads.

    It holds each subject's PSNR and recall@1.
    """

    def mean(values):
        return {"mean": float(np.mean(values)), "low": 0.0, "high": 1.0}

    kinds = {row: 0.0, "shuffled X-rays": -2.0, "mean face": -1.0} if psnr is not None else {}
    protocol = {"gallery": 54, "seen": 27, "chance": {"recall@1": 0.2}}
    asked = (row, "shuffled X-rays")
    protocol["by_subject"] = {name: {"recall@1": list(recall)} for name in asked}
    protocol["rows"] = {
        name: {"recall@1": mean(recall), "eer": {"mean": 0.3}} for name in asked
    } | {CEILING: {"recall@1": mean([1.0])}}
    protocol["curves"] = {name: [0.5, 1.0] for name in (*asked, CEILING)}
    found = {
        "data": {"name": data, "sha256": "0"},
        "images": 12,
        "subjects": 6,
        "resizing": "own size",
        "networks": {judge: "abc"} if psnr is not None else {},
        "not_computed": {},
        "retrieval": {judge: {"same/all": protocol}},
    }
    found["by_subject"] = {
        "subjects": SUBJECTS,
        "rows": {name: {"psnr": [v + less for v in psnr]} for name, less in kinds.items()},
    }
    found["rows"] = {
        name: {"psnr": mean(psnr)} | ({"fid": {"mean": fid}} if fid else {}) for name in kinds
    }
    origin = {"config": {}, "seed": 0, "versions": {}, "devices": "", "commit": ""}
    content = json.dumps({"differences": {}} | origin | found)
    return from_json(json.loads(content), Results)


def with_bad_xrays(one, row="X-rays rotated", less=3.0):
    """Adds the row of bad X-rays to results of `ours`."""
    values = [value - less for value in one.by_subject.rows["ours"]["psnr"]]
    one.by_subject.rows[row] = {"psnr": values}
    one.rows[row] = one.rows["ours"]
    protocol = one.retrieval["judge"]["same/all"]
    protocol.by_subject[row] = {"recall@1": [0.0] * len(SUBJECTS)}
    protocol.rows[row] = protocol.rows["ours"]
    protocol.curves[row] = [0.0, 1.0]
    return one


def test_bad_xrays_are_rows_that_all_seeds_have():
    runs = {
        "ours": [with_bad_xrays(results("ours", np.arange(6), np.ones(6))) for _ in range(2)],
        "a": [results("a", np.zeros(6), np.zeros(6))],
    }
    merged = compare(runs, "ours", ("a",), rounds=50)
    difference = merged.differences["ours minus ours, X-rays rotated"]["psnr"]
    assert difference.mean == difference.low == 3.0
    protocol = merged.retrieval["judge"]["same/all"]
    assert protocol.rows["ours, X-rays rotated"]["recall@1"].mean == 0.0
    assert protocol.differences["ours minus ours, X-rays rotated"]["recall@1"].mean == 1.0
    # A seed that was scored without them leaves them out.
    runs["ours"].append(results("ours", np.arange(6), np.ones(6)))
    merged = compare(runs, "ours", ("a",), rounds=50)
    assert list(merged.differences) == ["ours minus a"]
    assert "ours, X-rays rotated" not in merged.retrieval["judge"]["same/all"].rows


def in_millimetres(one, errors, masked=False):
    """Adds errors of four people at one site to results of one method."""
    row = next(iter(one.rows))
    by_row = {row: errors, "mean depth of the others": [2.0, 2.0, 1.0, 1.0]}
    estimate = Estimate(mean=0.0)
    one.depths = Depths(
        rows={name: {"chin": estimate} for name in by_row},
        differences={f"{row} minus mean depth of the others": {"chin": estimate}},
        images=4,
        subjects=4,
        masked=masked,
        unknown=0,
        by_subject=BySubject(
            subjects=["p0", "p1", "p2", "p3"], rows={n: {"chin": v} for n, v in by_row.items()}
        ),
    )
    return one


def test_millimetres_of_several_methods():
    def method(name, *errors, **settings):
        return [
            in_millimetres(results(name, np.zeros(6), np.ones(6)), e, **settings) for e in errors
        ]

    runs = {
        "ours": method("ours", [1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 0.0]),
        "a": method("a", [5.0, 5.0, 5.0, 5.0]),
        "b": [results("b", np.zeros(6), np.ones(6))],  # was not scored on people
    }
    merged = compare(runs, "ours", (), rounds=50).depths
    assert {name: row["chin"].mean for name, row in merged.rows.items()} == {
        "ours": 2.0,
        "a": 5.0,
        "mean depth of the others": 1.5,
    }
    assert merged.by_subject.rows["ours"]["chin"] == [2.0] * 4
    assert merged.differences["ours minus a"]["chin"].high == -3.0
    assert merged.differences["ours minus mean depth of the others"]["chin"].mean == 0.5
    words = tables.markdown(compare(runs, "ours", (), rounds=50))
    assert "| a | 5.00 [5.00, 5.00] |" in words and "| ours minus a | -3.00" in words
    # Without the headline there is nothing to subtract from.
    only = tables.markdown(compare({"a": runs["a"]}, "ours", (), rounds=50))
    assert "| a | 5.00" in only and "in mm" in only and "minus" not in only

    runs["a"] = method("a", [5.0, 5.0, 5.0, 5.0], masked=True)
    with pytest.raises(InputError, match="ours and a were scored on different cephalograms"):
        compare(runs, "ours", (), rounds=50)


def test_means_and_differences():
    """Seeds are averaged for each subject, and differences are paired by subject.

    So the level of a subject cancels in a difference.
    """
    level = np.array([10.0, 14.0, 18.0, 22.0, 26.0, 30.0])
    recall = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    runs = {
        "ours": [
            results("ours", level + 1.0, recall, fid=20.0),
            results("ours", level + 2.0, recall, fid=30.0),
        ],
        "a": [results("a", level, recall * 0.5, fid=50.0)],
        "b": [results("b", level - np.arange(6), recall * 0.0, fid=40.0)],
        "ablation": [results("ablation", level + 9.0, recall, fid=10.0)],
        "matcher": [results("matcher", None, recall, judge="matcher")],
        "unfinished": [],
    }
    comparison = compare(runs, "ours", ("a", "b"), rounds=500)
    found = to_json(comparison)
    assert found["rows"]["ours"]["psnr"]["mean"] == pytest.approx(level.mean() + 1.5)
    assert found["rows"]["ours"]["fid"] == {
        "mean": 25.0,
        "sd": pytest.approx(np.std([20, 30], ddof=1)),
    }
    assert "sd" not in found["rows"]["a"]["fid"]
    assert found["rows"]["ours, shuffled X-rays"]["psnr"]["mean"] == pytest.approx(
        level.mean() - 0.5
    )
    assert found["rows"]["mean face"]["psnr"]["mean"] == pytest.approx(level.mean() + 0.5)
    minus_a = found["differences"]["ours minus a"]["psnr"]
    assert all(minus_a[key] == pytest.approx(1.5) for key in ("mean", "low", "high"))
    # The interval over subjects is wide, that of the paired difference narrow.
    assert found["rows"]["ours"]["psnr"]["high"] - found["rows"]["ours"]["psnr"]["low"] > 5
    assert found["best"] == {"psnr": "a"}
    assert (
        found["differences"]["ours minus the best baseline"] == found["differences"]["ours minus a"]
    )
    part = found["retrieval"]["judge"]["same/all"]
    assert set(part["rows"]) == {
        "ours",
        "ours, shuffled X-rays",
        "a",
        "b",
        "ablation",
        "matcher",
        CEILING,
    }
    assert part["differences"]["ours minus b"]["recall@1"]["mean"] == pytest.approx(5 / 6)
    assert "matcher" not in found["rows"] and "matcher" not in found["retrieval"]
    words = tables.markdown(comparison)
    assert "Against the baselines" in words and "the best baseline: PSNR (dB) a" in words
    assert "unfinished" not in words


def test_what_is_no_comparison():
    level = np.arange(6.0)
    ours = results("ours", level, level)
    with pytest.raises(InputError, match="ours and a were scored on different data"):
        compare(
            {"ours": [ours], "a": [results("a", level, level, data="another")]}, "ours", ("a",), 10
        )
    with pytest.raises(InputError, match="ours and a were scored on different networks"):
        compare(
            {"ours": [ours], "a": [results("a", level, level, judge="friend")]}, "ours", ("a",), 10
        )
    fewer = results("a", level, level)
    fewer.by_subject.subjects = [*SUBJECTS[1:], "other"]
    with pytest.raises(InputError, match="different subjects"):
        compare({"ours": [ours], "a": [fewer]}, "ours", ("a",), 10)


def test_other_xrays_of_the_same_people():
    level = np.arange(6.0)
    ours, dry = results("ours", level, level), results("a", level, level, data="dry")
    runs = {"a": [dry], "ours": [ours]}
    compared = compare(runs, "ours", ("a",), 10, other_xrays=("a",))
    assert "- a: X-rays of dry, of the same people" in tables.markdown(compared)
    dry.config["data"] = {"settings": {"seed": 1}}
    with pytest.raises(InputError, match="scored on different data.settings"):
        compare(runs, "ours", ("a",), 10, other_xrays=("a",))
    del dry.config["data"]
    dry.by_subject.subjects = [*SUBJECTS[1:], "other"]
    with pytest.raises(InputError, match="different subjects"):
        compare(runs, "ours", ("a",), 10, other_xrays=("a",))


def study(tmp_path, *flags):
    return subprocess.run(
        [sys.executable, ROOT / "launch" / "study.py", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )


def test_a_failed_cell_is_told_and_stops_nothing(tmp_path):
    """Each cell fails for a different reason; nothing is compared and the exit code is 1."""
    (tmp_path / "two.py").write_text(
        "import ml_collections\ndef get_config(variant=''):\n    c ="
        " ml_collections.ConfigDict(dict(name='two', seeds=(0,), headline='one', baselines=(),"
        " bootstrap=10))\n    c.flags = c.method_flags = ()\n    c.helpers = (dict(name='judge',"
        " config='configs/arcface.py:smoke', seed=0, flags=('train.num_step=1',)),)\n    c.methods"
        " = (dict(name='one', config='configs/pix2pix.py:smoke', flags=('method.gan=wgan',)),\n    "
        "             dict(name='two', config='configs/pix2pix.py:smoke',"
        " flags=('evaluate.weights={judge}',)))\n    return c\n"
    )
    ended = study(tmp_path, "--study=two.py", f"--workdir={tmp_path / 'w'}")
    assert ended.returncode == 1
    assert "cell 0 of 3: judge, seed 0: FAILED" in ended.stdout and "num_step" in ended.stdout
    assert "method.gan='wgan': it is unknown" in ended.stdout
    assert "cell 2 of 3: two, seed 0: FAILED, needs the embedder of judge" in ended.stdout
    assert "3 of 3 cells failed" in ended.stderr and not (tmp_path / "w" / "study.json").exists()
    # A study can't continue in its folder with other flags.
    text = (tmp_path / "two.py").read_text()
    (tmp_path / "two.py").write_text(text.replace("wgan", "gan"))
    assert (
        "was started with other flags"
        in study(tmp_path, "--study=two.py", f"--workdir={tmp_path / 'w'}", "--cell=1").stdout
    )


def test_flags_of_a_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "later.py").write_text(
        "from configs import study_phantom\n"
        "def get_config(variant):\n"
        "    c = study_phantom.get_config()\n"
        "    c.seeds = (0, 1)\n"
        "    later = dict(seeds=(1,))\n"
        "    c.methods = tuple(m | later if m['name'] == 'cut' else m for m in c.methods)\n"
        "    return c\n"
    )
    (tmp_path / "none.py").write_text((tmp_path / "later.py").read_text().replace("(1,)", "(2,)"))

    def told(name, *flags):
        """Returns what a study prints, and the sentence in which it ends."""
        arguments = [f"--study={name}", "--workdir=w", *flags]
        monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
        error = ""
        try:
            launched.main()
        except (InputError, SystemExit) as ended:
            error = str(ended)
        out, written = capsys.readouterr()
        return out, written + error

    phantom = "configs/study_phantom.py"
    listed, _ = told(phantom, "--list")
    assert "  2  cranio_diff, seed 0" in listed
    for name, flag, words in (
        ("configs/none.py", "--list", "no such file"),
        (f"{phantom}:tiny", "--list", "no variant 'tiny'"),
        (phantom, "--cell=11", "the study has the cells 0 to 10"),
        (phantom, "--seed=3", "--seed=3 is not a study flag"),
        ("none.py", "--list", "cut has the seed 2, which the study has not"),
        ("configs/study_paper.py", "--list", "name their folder with --weights"),
    ):
        assert words in told(name, flag)[1]
    others, _ = told(phantom, "--list", "--seeds=0,1")
    assert others.startswith(listed) and " 11  cranio_diff, seed 1" in others
    # The study that CI runs.
    assert "  5  siamese, seed 0" in told(f"{phantom}:smoke_four", "--list")[0]
    one, _ = told("later.py", "--list")
    assert "cut, seed 1" in one and "cut, seed 0" not in one and "pix2pix, seed 0" in one
    assert told("later.py", "--list", "--seeds=0")[0] == listed


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="only Linux binds threads to cores"
)
def test_cells_at_once_share_the_cores():
    """The workers divide all cores among them; the main process keeps all of its cores."""
    own, at_once, meet = os.sched_getaffinity(0), 2, threading.Barrier(2)

    def cores(_):
        meet.wait(10)  # so that one worker does not take both
        return os.sched_getaffinity(0)

    with futures.ThreadPoolExecutor(
        at_once, initializer=launched._take_cores, initargs=(itertools.count(), at_once)
    ) as pool:
        first, second = pool.map(cores, range(2))
    assert first | second == own == os.sched_getaffinity(0)
    assert len(own) == 1 or not first & second
