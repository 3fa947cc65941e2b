"""Published files of feature networks to safetensors."""

import hashlib

import numpy as np
import pytest
import safetensors.numpy
import torch

from cranio_jax.errors import InputError
from cranio_jax.pretrained.__main__ import main
from cranio_jax.pretrained.convert import convert, kinds


def state_of(name, dtype=torch.float32):
    """Random weights of the kind whose name ends so."""
    shapes = next(shapes for kind, shapes in kinds() if kind.endswith(name))
    return {key: torch.randn(shape, dtype=dtype) for key, shape in shapes.items()}


def published(folder, state, name="weights.pth"):
    torch.save(state, folder / name)
    return folder / name


@pytest.mark.parametrize("name", [name for name, _ in kinds() if "100" not in name])
def test_each_kind_is_recognised(tmp_path, name):
    state = state_of(name)
    # torchvision's files hold a classifier, others buffers that count batches.
    more = {"classifier.6.bias": torch.zeros(1000)} if "trunk" in name else {"bn.num_batches_tracked": torch.tensor(3)}
    file = published(tmp_path, state | more)
    said = convert(file, tmp_path / "out.safetensors")
    assert f"weights.pth is {name}: {len(state)} tensors, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}" == said
    found = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert found.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value.numpy())
    # What was written is recognised in turn.
    assert name in convert(tmp_path / "out.safetensors", tmp_path / "again.safetensors")


def test_the_command(tmp_path, capsys):
    file = published(tmp_path, state_of("trunk squeeze of LPIPS", torch.float16))
    main(["convert", str(file), str(tmp_path / "new" / "out.safetensors")])
    assert "weights.pth is the trunk squeeze of LPIPS" in capsys.readouterr().out
    assert {v.dtype for v in safetensors.numpy.load_file(tmp_path / "new" / "out.safetensors").values()} == {np.dtype("float32")}
    with pytest.raises(SystemExit, match="nothing.pth: no such file"):
        main(["convert", str(tmp_path / "nothing.pth"), str(tmp_path / "other.safetensors")])


def test_a_name_with_a_hash_is_checked(tmp_path):
    file = published(tmp_path, state_of("heads for alex"))
    right = file.rename(tmp_path / f"alex-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth")
    assert "LPIPS's heads for alex" in convert(right, tmp_path / "out.safetensors")
    wrong = right.rename(tmp_path / "alex-00000000.pth")
    with pytest.raises(InputError, match="not as the name says"):
        convert(wrong, tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_nothing_known(tmp_path):
    state = state_of("trunk alex of LPIPS")
    state["features.0.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(InputError, match="weights.pth holds 10 tensors, such as 'features.0.bias', of none that is known: the Inception"):
        convert(published(tmp_path, state), tmp_path / "none.safetensors")
