"""Published files of feature networks to safetensors."""

import hashlib
import warnings

import jax
import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from torch import nn

from cranio_jax.errors import InputError
from cranio_jax.pretrained.__main__ import main
from cranio_jax.pretrained.convert import convert
from cranio_jax.pretrained.embedder import open_embedder
from cranio_jax.pretrained.files import open_weights
from cranio_jax.pretrained.kinds import kinds
from cranio_jax.pretrained.load import load
from tests.models.torch_iresnet import iresnet


def state_of(name, dtype=torch.float32):
    """Random weights of the kind whose name ends so."""
    shapes = next(kind.shapes for kind in kinds() if kind.title.endswith(name))
    return {key: torch.randn(shape, dtype=dtype) for key, shape in shapes.items()}


def published(folder, state, name="weights.pth"):
    torch.save(state, folder / name)
    return folder / name


# One of each part; test_kinds.py has all.
NAMES = ("the Inception of the FID", "mobilefacenet", "the trunk squeeze of LPIPS", "heads for vgg")


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_is_recognised(tmp_path, name):
    state, kind = state_of(name), next(kind for kind in kinds() if kind.title.endswith(name))
    # torchvision's files hold a classifier, others buffers that count batches.
    more = {key: torch.zeros(shape) for key, shape in kind.extras.items()}
    file = published(tmp_path, state | more | {"bn.num_batches_tracked": torch.tensor(3)})
    said = convert(file, tmp_path / "out.safetensors")
    # Random heads are not the published ones.
    title = kind.title + " (not the published ones)" * (kind.part == "heads")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert said == f"weights.pth is {title}: {len(state)} tensors, SHA-256 {digest}"
    found = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert found.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value.numpy())
    # What was written is recognised in turn.
    assert title in convert(tmp_path / "out.safetensors", tmp_path / "again.safetensors")


def test_the_command(tmp_path, capsys):
    file = published(tmp_path, state_of("trunk squeeze of LPIPS", torch.float16))
    main(["convert", str(file), str(tmp_path / "new" / "out.safetensors")])
    assert "weights.pth is the trunk squeeze of LPIPS" in capsys.readouterr().out
    assert {
        v.dtype for v in safetensors.numpy.load_file(tmp_path / "new" / "out.safetensors").values()
    } == {np.dtype("float32")}
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
    with pytest.raises(
        InputError,
        match=r"not the trunk alex of LPIPS: its tensor 'features.0.weight' is \(64, 3, 7, 7\)",
    ):
        convert(published(tmp_path, state), tmp_path / "none.safetensors")


def written(model, file, picture=None):
    """A model as torch exports it: norms folded into convolutions, tensors without names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, 112, 112) if picture is None else picture,),
            str(file),
            dynamo=False,
            opset_version=11,
        )
    return file


def test_an_iresnet_from_onnx(tmp_path):
    model = iresnet((2, 2, 2, 2))
    file = written(model, tmp_path / "r18.onnx")
    assert len(onnx.load(file).graph.node) < 60  # 25 convolutions, of whose norms 18 are folded
    out = tmp_path / "out.safetensors"
    assert "r18.onnx is an ArcFace network, iresnet18: " in convert(file, out)
    face = np.random.default_rng(0).uniform(-1, 1, (2, 112, 112, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(face).permute(0, 3, 1, 2)).numpy()
    for path in (file, out):
        embedder = open_embedder(path)
        assert embedder.name == f"arcface/{path.stem}" and embedder.settings == {
            "network": "iresnet18"
        }
        network = embedder.network()
        places = dict.fromkeys(
            network.shapes(), jax.sharding.SingleDeviceSharding(jax.devices()[0])
        )
        with open_weights(path) as tensors:
            params = load(network.shapes(), tensors, places, path.name)
        got = jax.jit(lambda p, x: network.bind(p)(x))(params, face)  # noqa: B023
        assert np.linalg.norm(got - wanted) < 1e-4 * np.linalg.norm(wanted - wanted.mean(0))


def test_an_onnx_file_that_holds_more_is_refused(tmp_path):
    excited = iresnet((1, 1, 1, 1), excited=True, channels=16, side=16)
    picture = torch.zeros(1, 3, 16, 16)
    file = written(excited, tmp_path / "se.onnx", picture)
    with pytest.raises(InputError, match="se.onnx is no IResNet without squeeze-and-excitation"):
        convert(file, tmp_path / "none.safetensors")
    plain = iresnet((1, 1, 1, 1), channels=16, side=16)
    for more in (nn.Linear(512, 3), nn.ReLU()):
        file = written(nn.Sequential(plain, more), tmp_path / "more.onnx", picture)
        with pytest.raises(
            InputError, match="more.onnx is no IResNet: its last batch norm goes to"
        ):
            convert(file, tmp_path / "none.safetensors")
    file = written(plain, tmp_path / "small.onnx", picture)
    with pytest.raises(InputError, match=r"small.onnx is an IResNet of \(1, 1, 1, 1\) blocks"):
        convert(file, tmp_path / "none.safetensors")


def test_the_epsilon_of_onnx_norms_is_kept(tmp_path):
    model = iresnet((1, 1, 1, 1), channels=16, side=16)
    plain = open_onnx(written(model, tmp_path / "plain.onnx", torch.zeros(1, 3, 16, 16)))
    model.bn2.eps = 1e-3
    other = open_onnx(written(model, tmp_path / "other.onnx", torch.zeros(1, 3, 16, 16)))
    difference = other["bn2.running_var"] - plain["bn2.running_var"]
    np.testing.assert_allclose(difference, 1e-3 - 1e-5, atol=1e-6)


def open_onnx(file):
    with open_weights(file) as tensors:
        return {key: tensor.read() for key, tensor in tensors.items()}


def test_another_onnx_is_refused(tmp_path):
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    with pytest.raises(InputError, match="plain.onnx is no IResNet: .* goes to Relu, not to PRelu"):
        convert(written(plain, tmp_path / "plain.onnx"), tmp_path / "none.safetensors")
    (tmp_path / "damaged.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(InputError, match="damaged.onnx: damaged, or not ONNX"):
        convert(tmp_path / "damaged.onnx", tmp_path / "none.safetensors")
    # A name that promises a content.
    written(plain, tmp_path / "w600k_r50.onnx")
    with pytest.raises(
        InputError,
        match="w600k_r50.onnx: the content's SHA-256 begins with .*, not as the name says",
    ):
        convert(tmp_path / "w600k_r50.onnx", tmp_path / "none.safetensors")


def test_heads_of_all_trunks_in_one_file(tmp_path):
    state = {
        f"{name}.{key}": value
        for name in ("vgg", "alex", "squeeze")
        for key, value in state_of(f"heads for {name}").items()
    }
    said = convert(published(tmp_path, state), tmp_path / "out.safetensors")
    titles = (
        f"LPIPS's heads for {name} (not the published ones)" for name in ("vgg", "alex", "squeeze")
    )
    assert f"{' and '.join(titles)}: 17 tensors" in said
    assert safetensors.numpy.load_file(tmp_path / "out.safetensors").keys() == state.keys()
