"""Files as torch, safetensors and training scripts write them, and the GANs' buffers in them."""

import collections

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from cranio_jax import pretrained
from cranio_jax.errors import InputError
from cranio_jax.models.functional import Network
from cranio_jax.models.translation import NLayerDiscriminator, ResnetGenerator, UnetGenerator
from tests.models.torch_translation import TorchPatches, TorchResnet, TorchUnet

STATE = {
    "a.weight": torch.arange(12.0).reshape(3, 4) / 7,
    "b.bias": torch.tensor([1.5, -2.25]),
    "none": torch.zeros(0, 3),
}


def read(path):
    with pretrained.open_weights(path) as tensors:
        for tensor in tensors.values():
            assert tensor.read().shape == tensor.shape
        return {key: np.asarray(tensor.read(), np.float32) for key, tensor in tensors.items()}


def agrees(path, state=STATE):
    found = read(path)
    assert found.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value.detach().float().numpy())


def older(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [torch.save, older])
@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.ckpt", "weights.bin"])
def test_torch_files_of_any_age(tmp_path, write, name):
    write(collections.OrderedDict(STATE), tmp_path / name)
    agrees(tmp_path / name)


BESIDE = {"epoch": 3, "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]}}


@pytest.mark.parametrize("write", [torch.save, older])
def test_checkpoints_of_training_scripts(tmp_path, write):
    for name in ("state_dict", "model_state_dict", "net_state_dict", "state_dict_backbone", "own"):
        write(BESIDE | {name: STATE}, tmp_path / "weights.pth")
        agrees(tmp_path / "weights.pth")
    # insightface keeps the classifier's centres beside the network.
    write(
        {"state_dict_softmax_fc": {"weight": torch.ones(2)}, "state_dict_backbone": STATE},
        tmp_path / "a.pt",
    )
    agrees(tmp_path / "a.pt")
    learned = {key: torch.nn.Parameter(value) for key, value in STATE.items()}
    write(learned, tmp_path / "weights.pth")
    agrees(tmp_path / "weights.pth")


TYPES = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")


@pytest.mark.parametrize("dtype", TYPES)
def test_every_floating_type(tmp_path, dtype):
    state = {key: value.to(getattr(torch, dtype)) for key, value in STATE.items()}
    assert dtype in ("float32", "float64") or (state["a.weight"].float() != STATE["a.weight"]).any()
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    agrees(tmp_path / "weights.safetensors", state)
    torch.save(state, tmp_path / "weights.bin")
    agrees(tmp_path / "weights.bin", state)
    # Safetensors are known by their content.
    (tmp_path / "weights.safetensors").rename(tmp_path / "weights.sft")
    agrees(tmp_path / "weights.sft", state)


class Whole(torch.nn.Linear):
    """A network that is pickled whole."""


def scripted(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def half_of(path):
    older(STATE, path)
    path.write_bytes(path.read_bytes()[:200])


REFUSED = {
    "a whole network": (
        lambda p: torch.save(Whole(2, 2), p),
        "holds more than weights .it calls .*Whole",
    ),
    "older, a whole network": (lambda p: older(Whole(2, 2), p), "holds more than weights"),
    "TorchScript": (scripted, "holds more than weights .it is a TorchScript program"),
    "older, cut short": (half_of, "damaged, or holds more"),
    "empty": (lambda p: p.write_bytes(b""), "damaged, or holds more"),
    "a page": (lambda p: p.write_text("<!DOCTYPE html><html>404</html>"), "damaged, or holds more"),
    "a pointer": (
        lambda p: p.write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
        ),
        "a pointer of Git LFS, not the weights; run `git lfs pull`",
    ),
    "one tensor": (lambda p: torch.save(torch.ones(3), p), "holds a Tensor, not tensors by name"),
    "a list": (lambda p: torch.save([torch.ones(3)], p), "holds a list, not tensors by name"),
    "two sets": (
        lambda p: torch.save({"params": STATE, "params_ema": STATE}, p),
        "several sets of tensors .params, params_ema",
    ),
    "whole numbers": (
        lambda p: torch.save({"a": torch.ones(3, dtype=torch.int8)}, p),
        "the tensor 'a' is of type torch.int8.*; expected floating-point weights",
    ),
    "sparse": (
        lambda p: torch.save({"a": torch.eye(3).to_sparse()}, p),
        "torch.sparse_coo; expected floating",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named(tmp_path, case):
    write, message = REFUSED[case]
    write(tmp_path / "weights.pth")
    with pytest.raises(InputError, match=f"weights.pth: .*{message}") as raised:
        read(tmp_path / "weights.pth")
    assert "\n" not in str(raised.value)


def test_whole_numbers_in_safetensors(tmp_path):
    state = {"a": torch.ones(3), "b": torch.ones(3, dtype=torch.int8)}
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="the tensor 'b' is of type I8; expected floating-point"):
        read(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", 3, ""])
def test_an_index_names_files_beside_it(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(f'{{"weight_map": {{"a": {name!r}}}}}'.replace("'", '"'))
    with pytest.raises(
        InputError, match=r"index.json: (lists .*, which is not a file beside it|no such)"
    ):
        read(index)


# The buffers that the authors' networks have registered: statistics that instance norms of torch
# 0.3 kept, and the blurs of CUT.
GANS = {
    "instance": (
        lambda rngs: UnetGenerator(5, 8, "instance", rngs=rngs),
        lambda: TorchUnet(5, 8, "instance"),
    ),
    "resnet": (lambda rngs: ResnetGenerator(1, 8, rngs=rngs), lambda: TorchResnet(1, 8)),
    "CUT": (
        lambda rngs: ResnetGenerator(1, 8, antialias=True, rngs=rngs),
        lambda: TorchResnet(1, 8, antialias=True),
    ),
    "CUT's patches": (
        lambda rngs: NLayerDiscriminator(3, 8, 2, "instance", antialias=True, rngs=rngs),
        lambda: TorchPatches(3, 8, 2, "instance", True),
    ),
}


def blur(channels, taps, gain=1.0):
    taps = torch.tensor(taps)
    square = gain * taps[:, None] * taps / taps.sum() ** 2
    return square[None, None].repeat(channels, 1, 1, 1)


def with_buffers(model):
    """A state dictionary with all buffers that published files may hold."""
    state, channels = dict(model.state_dict()), 0
    for name, module in model.named_modules():
        channels = getattr(module, "out_channels", channels)
        if isinstance(module, torch.nn.InstanceNorm2d):
            state |= {f"{name}.running_{kind}": torch.rand(channels) for kind in ("mean", "var")}
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        elif type(module).__name__ == "TorchDown":
            state[f"{name}.filt"] = blur(channels, [1.0, 2.0, 1.0])
        elif type(module).__name__ == "TorchUp":
            state[f"{name}.filt"] = blur(channels, [1.0, 3.0, 3.0, 1.0], 4.0)
    assert len(state) > len(model.state_dict())
    return state


def loaded(network, path):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = network.shapes()
    with pretrained.open_weights(path) as tensors:
        return pretrained.load(shapes, tensors, dict.fromkeys(shapes, here), path.name)


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("case", GANS)
def test_buffers_of_the_authors_networks(tmp_path, case, wrapper):
    make, reference = GANS[case]
    network, model = Network(make), reference()
    older(model.state_dict(), tmp_path / "plain.pth")
    state = with_buffers(model)
    older({wrapper + key: value for key, value in state.items()}, tmp_path / "latest_net_G.pth")
    wanted, found = (loaded(network, tmp_path / n) for n in ("plain.pth", "latest_net_G.pth"))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_other_buffers_are_another_network(tmp_path):
    make, reference = GANS["CUT"]
    state, path = with_buffers(reference()), tmp_path / "latest_net_G.pth"
    key = next(key for key in state if key.endswith("filt"))
    for filt in (blur(8, [1.0, 1.0, 1.0]), blur(8, [1.0, 4.0, 6.0, 4.0, 1.0])):
        torch.save(state | {key: filt}, path)
        with pytest.raises(InputError, match=f"latest_net_G.pth: '{key}' is not the blur"):
            loaded(Network(make), path)
    # Batch norms have weights, too.
    torch.save(TorchResnet(1, 8, "batch").state_dict(), path)
    with pytest.raises(InputError, match="latest_net_G.pth lacks|that the network lacks"):
        loaded(Network(GANS["resnet"][0]), path)
    torch.save(reference().state_dict() | {"model.2.weight": torch.ones(8)}, path)
    with pytest.raises(
        InputError, match="1 tensors that the network lacks, such as 'model.2.weight'"
    ):
        loaded(Network(make), path)


def test_the_packages_heads(shared_data, tmp_path):
    """The lpips package's own files are of before torch 1.6."""
    heads = safetensors.torch.load_file(shared_data / "weights" / "lpips_v0.1_linear.safetensors")
    for trunk in ("vgg", "alex", "squeeze"):
        own = {k.removeprefix(trunk + "."): v for k, v in heads.items() if k.startswith(trunk)}
        older(collections.OrderedDict(own), tmp_path / f"{trunk}.pth")
        [kind] = pretrained.kinds_of(tmp_path / f"{trunk}.pth")
        assert (kind.part, kind.network, kind.published) == ("heads", trunk, True)
