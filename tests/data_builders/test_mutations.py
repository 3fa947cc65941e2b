"""A few of the mutations that `mutations` tries by the thousand."""

import numpy as np
import pytest

from data_builders.skull_face.draft import draft
from tests.data_builders.mutations import attempt, mutated, outcome, sound, valid_files


def test_valid_files_are_read(tmp_path):
    """The mutations start from files that are fine."""
    for name, content in valid_files().items():
        folder = tmp_path / name
        folder.mkdir()
        assert sound(name, content) and outcome(name, content, folder) == "read", name


def test_mutations_are_read_or_refused():
    counts, wrong = attempt(seed=1, count=300)
    assert not wrong, "\n".join(wrong)
    said = [said for _, said in counts]
    assert said.count("read") > 5 and said.count("refused") > 10


@pytest.mark.parametrize("name", ["xray.16.png", "head.1.nii.gz"])
def test_checksums_are_noticed(name):
    """The check of the checksums that the mutations are judged by can fail."""
    content = valid_files()[name]
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    assert sound(name, content) and not sound(name, bytes(damaged))
    assert len({mutated(content, np.random.default_rng(seed)) for seed in range(20)}) > 15


def test_draft_goes_on_past_any_file(tmp_path, capsys):
    """A folder of damaged files and one sound X-ray: it is found, and what is left out is named."""
    rng = np.random.default_rng(3)
    for number, (name, content) in enumerate(3 * list(valid_files().items())):
        (tmp_path / "ann").mkdir(exist_ok=True)
        (tmp_path / "ann" / f"{number}.{name}").write_bytes(mutated(content, rng))
    (tmp_path / "ann" / "sound.png").write_bytes(valid_files()["xray.16.png"])
    assert "ann/sound.png" in {row["xray"] for row in draft(tmp_path)}
    assert "left out" in capsys.readouterr().err
