"""A file is recognised if every one of its tensors is accounted for, and not otherwise."""

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.metrics.features import Features
from cranio_jax.models.arcface import EMBEDDERS
from cranio_jax.models.functional import Network
from cranio_jax.pretrained import open_part
from cranio_jax.pretrained.files import Tensor
from cranio_jax.pretrained.kinds import RELEASES, kinds, recognise
from cranio_jax.pretrained.names import from_torch, torch_key
from tests.models.torch_iresnet import LAYERS, TorchIResNet, iresnet


def stand_ins(shapes):
    """Tensors of these shapes, all ones, that take no memory before they are read."""
    return {
        key: Tensor(tuple(shape), lambda shape=shape: np.ones(shape, np.float32))
        for key, shape in shapes.items()
    }


def layout(layers, **settings):
    """The published layout of an IResNet of these blocks, without its values."""
    with torch.device("meta"):
        state = TorchIResNet(layers, **settings).state_dict()
    return stand_ins({key: value.shape for key, value in state.items()})


def titles(tensors):
    return [kind.title for kind, _ in recognise(tensors, "file")]


def refusal(tensors):
    with pytest.raises(InputError) as raised:
        recognise(tensors, "file")
    assert "\n" not in str(raised.value) and str(raised.value).startswith("file ")
    return str(raised.value)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.title)
def test_a_kind_is_exactly_its_tensors(kind):
    tensors = stand_ins(kind.shapes)
    [(found, own)] = recognise(tensors, "file")
    assert (found.part, found.network) == (kind.part, kind.network) and own == tensors
    # What published files hold besides.
    batches = Tensor((), lambda: np.array(0))
    stems = [key.removesuffix("running_var") for key in tensors if key.endswith("running_var")]
    counted = {stem + "num_batches_tracked": batches for stem in stems}
    assert len(titles(tensors | stand_ins(kind.extras) | counted)) == 1
    # One tensor more, less, or of another shape.
    first = min(tensors)
    assert "more tensors, such as 'spare.weight'" in refusal(
        tensors | stand_ins({"spare.weight": (3,)})
    )
    less = {key: value for key, value in tensors.items() if key != first}
    assert f"'{first}'" in refusal(less)
    assert "expected" in refusal(tensors | stand_ins({first: (*kind.shapes[first], 2)}))


@pytest.mark.parametrize("trunk", ["vgg", "alex", "squeeze"])
def test_a_classifier_of_other_classes_is_another_network(trunk):
    kind = next(k for k in kinds() if (k.part, k.network) == ("trunk", trunk))
    last = max(kind.extras)
    fine_tuned = kind.extras | {last: (10, *kind.extras[last][1:])}
    assert f"'{last}'" in refusal(stand_ins(kind.shapes | fine_tuned))


@pytest.mark.parametrize("depth", LAYERS)
def test_iresnets_are_told_apart_by_their_blocks(depth):
    assert titles(layout(LAYERS[depth])) == [f"an ArcFace network, iresnet{depth}"]


def test_other_iresnets_are_named():
    assert "an IResNet of (3, 8, 36, 3) blocks" in refusal(layout((3, 8, 36, 3)))
    assert "of no known network" in refusal(layout(LAYERS[50], channels=32))
    half = layout(LAYERS[50]) | stand_ins({"fc.weight": (256, 25088)})
    assert "its tensor 'fc.weight' is (256, 25088), expected (512, 25088)" in refusal(half)
    classes = layout(LAYERS[50]) | stand_ins({"head.weight": (512, 85742)})
    assert "iresnet50 and 1 more tensors, such as 'head.weight'" in refusal(classes)


# Keys of networks in the field that hold squeeze-and-excitation, behind those of the plain ones.
EXCITED = (
    "layer1.0.se.fc.0.weight",
    "layer1.0.se_module.fc1.weight",
    "layer1.0.se_block.prelu.weight",
)
EXCITED += ("body.0.res_layer.5.fc1.weight",)


def test_squeeze_and_excitation_is_named():
    found = refusal(layout(LAYERS[50], excited=True))
    assert "squeeze-and-excitation, such as 'layer1.0.se.fc1.bias'" in found
    for key in EXCITED:
        assert "squeeze-and-excitation" in refusal(layout(LAYERS[18]) | stand_ins({key: (4, 64)}))
    ir = {"input_layer.0.weight": (64, 3, 3, 3), "body.0.res_layer.1.weight": (64, 64, 3, 3)}
    assert "face.evoLVe's layout" in refusal(stand_ins(ir))


def test_nothing_known():
    assert refusal({}).startswith("file holds 0 tensors, such as 'none', of no known network")
    twice = layout(LAYERS[18])
    twice |= {"module.fc.bias": twice["fc.bias"]}
    assert "'fc.bias' and 'module.fc.bias', which mean the same tensor" in refusal(twice)


@pytest.mark.parametrize(
    "wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrappers_of_the_network_are_no_part_of_it(wrapper):
    wrapped = {wrapper + key: tensor for key, tensor in layout(LAYERS[34]).items()}
    assert titles(wrapped) == ["an ArcFace network, iresnet34"]
    inside = {key.replace("layer1.", "layer1._orig_mod."): t for key, t in wrapped.items()}
    assert titles(inside) == ["an ArcFace network, iresnet34"]


def released(release, trunk):
    """Heads with the sums of a release."""
    heads = {}
    shapes = next(k for k in kinds() if (k.part, k.network) == ("heads", trunk)).shapes
    for (key, shape), total in zip(shapes.items(), RELEASES[release][trunk], strict=True):
        heads[key] = np.full(shape, 2 * total / (shape[1] + 1), np.float32)
    return heads


@pytest.mark.parametrize("trunk", ["vgg", "alex", "squeeze"])
def test_releases_of_lpips(tmp_path, trunk):
    for release in RELEASES:
        safetensors.numpy.save_file(released(release, trunk), tmp_path / f"{release}.safetensors")
    trunks = {key: np.ones(shape, np.float16) for key, shape in trunk_shapes(trunk).items()}
    safetensors.numpy.save_file(trunks, tmp_path / "trunk.safetensors")
    other = {key: value[:, ::-1] * 1.1 for key, value in released("v0.1", trunk).items()}
    safetensors.numpy.save_file(other, tmp_path / "other.safetensors")

    def name(heads):
        files = f"{tmp_path}/trunk.safetensors,{tmp_path}/{heads}.safetensors"
        return list(Features(files, (0.0, 0.0, 1.0, 1.0)).pair_metrics(64, 64, masked=False))[-1]

    assert name("v0.1") == f"lpips/{trunk}"
    assert name("other") == f"lpips/{trunk} (unpublished heads)"
    with pytest.raises(
        InputError, match=f"v0.0.safetensors holds LPIPS's heads for {trunk} of rel"
    ):
        name("v0.0")
    with (
        pytest.raises(InputError, match="v0.0, fitted to inputs"),
        open_part(tmp_path / "v0.0.safetensors", "heads", trunk),
    ):
        pass
    with (
        pytest.raises(InputError, match=f"is LPIPS's heads for {trunk}; expected the trunk of"),
        open_part(tmp_path / "v0.1.safetensors", "trunk", trunk),
    ):
        pass


def trunk_shapes(trunk):
    return next(k for k in kinds() if (k.part, k.network) == ("trunk", trunk)).shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_published_heads_are_known(shared_data, dtype):
    path = shared_data / "weights" / "lpips_v0.1_linear.safetensors"
    heads = {}
    for key, value in safetensors.numpy.load_file(path).items():
        rounded = torch.from_numpy(value).to(dtype).float().numpy()
        heads[key] = Tensor(value.shape, lambda rounded=rounded: rounded)
    found = [(kind.part, kind.published) for kind, _ in recognise(heads, "file")]
    assert found == [("heads", True)] * 3


def test_a_small_iresnet200_is_torchs():
    model = iresnet(LAYERS[200], damping=0.5, channels=4, side=32)
    face = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(face).permute(0, 3, 1, 2)).numpy()
    make = EMBEDDERS["iresnet200"]
    network = Network(lambda rngs: make(channels=4, height=32, width=32, rngs=rngs))
    state = model.state_dict()
    params = {p: np.array(from_torch(p, state[torch_key(p)].numpy())) for p in network.shapes()}
    got = jax.jit(lambda p, x: network.bind(p)(x))(params, face)
    assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted - wanted.mean(0))


def test_an_iresnet34_is_scored_as_itself(tmp_path):
    """Its file holds all tensors of an IResNet-18."""
    model = iresnet(LAYERS[34])
    torch.save(model.state_dict(), tmp_path / "glint_r34.pth")
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    features = Features(str(tmp_path / "glint_r34.pth"), (0.0, 0.0, 1.0, 1.0))
    params = features.load(sharding.make_mesh(1, 1))
    got = jax.jit(features.embed)(params, faces)["arcface/glint_r34"]
    with torch.no_grad():
        picture = torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        wanted = model(picture).numpy()
    assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted - wanted.mean(0))
