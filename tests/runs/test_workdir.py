"""The experiment of a folder: identified by its content, not by the paths of its weights."""

import hashlib
import json
import os
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

from cranio_jax import data
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.methods.base import Method
from cranio_jax.pretrained import sha256
from cranio_jax.runs import workdir
from cranio_jax.runs.checkpoints import Checkpoints
from cranio_jax.runs.state import restore_or_init
from cranio_jax.training import loop


def history(folder):
    return json.loads((folder / "config.json").read_text()).get("history", [])


def test_a_run_goes_on_longer_slower_and_in_larger_batches(quick_config, tmp_path, capsys):
    config = quick_config
    config.train.update(num_steps=3, log_every=1)
    loop.train(config, tmp_path)
    config.train.update(num_steps=5, learning_rate=1e-4, batch_size=16)
    state = loop.train(config, tmp_path)
    assert int(state["step"]) == 5
    change = {"before": 2e-4, "after": 0.0001}
    [entry] = history(tmp_path)
    assert entry["after_step"] == 3 and entry["changed"]["train.learning_rate"] == change
    assert set(entry["changed"]) == {"train.num_steps", "train.learning_rate", "train.batch_size"}
    assert "from now on train.batch_size is 16 (was 8)" in capsys.readouterr().err
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        step, position = checkpoints.latest, (tmp_path / "checkpoints" / "5" / "data").rglob("*")
        assert step == 5 and any('"examples": 56' in f.read_text() for f in position if f.is_file())
    config.train.num_steps = 4
    with pytest.raises(InputError, match="train.num_steps=4: 5 steps are done"):
        loop.train(config, tmp_path)
    config.train.num_steps, config.seed = 5, 7
    with pytest.raises(InputError, match=r"another experiment \(seed is 0 there and 7 here\)"):
        loop.train(config, tmp_path)
    assert len(history(tmp_path)) == 2


@pytest.mark.parametrize("second", [8, 12, 4])
def test_batches_of_another_size_go_on_in_the_same_order(config, second):
    """No example is left out or seen twice, and the augmentation of each stays the same."""
    examples = data.Examples(data.make_builder(config.data), "train", config)

    def prepare(example, rng):
        return data.augment(example, rng, config.augment)

    whole = data.TrainingBatches(examples, 24, 3, prepare)
    first = data.TrainingBatches(examples, 8, 3, prepare)
    parts = [next(first) for _ in range(3)]
    rest = data.TrainingBatches(examples, second, 3, prepare, position=first.get_state())
    parts += [next(rest) for _ in range(24 // second)]
    wanted = [next(whole) for _ in range(2)]
    for name in ("id_hash", "xray"):
        ours, theirs = (np.concatenate([b[name] for b in run]) for run in (parts, wanted))
        np.testing.assert_array_equal(ours, theirs)
    assert rest.get_state() == whole.get_state() == {"examples": 48}
    # Version 0.1 stored positions as a number of batches.
    old = data.TrainingBatches(examples, 8, 3, prepare, position={"next_index": 3})
    np.testing.assert_array_equal(next(old)["xray"], wanted[1]["xray"][:8])


def test_weights_are_judged_by_content(config, tmp_path):
    from configs import pix2pix

    gan = pix2pix.get_config("smoke")
    gan.data = config.data
    file = tmp_path / "latest_net_G.pth"
    file.write_bytes(b"weights")
    gan.method.files = {"G": str(file)}
    folder = tmp_path / "run"
    workdir.claim(folder, gan, make_method(gan))

    moved = tmp_path / "elsewhere.pth"
    shutil.move(file, moved)
    gan.method.files = {"G": str(moved)}
    workdir.claim(folder, gan, make_method(gan))
    moved.write_bytes(b"WEIGHTS")
    with pytest.raises(InputError, match="was trained with other weights of G. Put those back"):
        workdir.check(folder, gan, make_method(gan))
    gan.method.files = {}
    with pytest.raises(InputError, match="other weights of G"):
        workdir.check(folder, gan, make_method(gan))


def test_settings_of_published_files_count(config, tmp_path):
    """An edited scheduler_config.json makes another experiment; its writer's version does not."""

    def published(**scheduler):
        method = mock.Mock(spec=Method, settings={"scheduler": scheduler})
        method.weight_hashes.return_value = {"unet": "0" * 64}
        return method

    workdir.claim(tmp_path, config, published(prediction_type="epsilon", _name_or_path="/a"))
    workdir.check(tmp_path, config, published(prediction_type="epsilon", _name_or_path="/b"))
    with pytest.raises(InputError, match="settings.scheduler.prediction_type is 'epsilon' there"):
        workdir.check(tmp_path, config, published(prediction_type="v_prediction"))


def test_a_large_file_is_hashed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights.safetensors"
    content = np.random.default_rng(0).bytes(2**24 + 1)
    file.write_bytes(content)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    digest = sha256(file)
    assert digest == hashlib.sha256(content).hexdigest()
    with monkeypatch.context() as blind:
        blind.setattr("cranio_jax.pretrained.hashes._digest", lambda files: "read again")
        assert sha256(file) == digest
    # Replace the file by one of the same size and time.
    file.write_bytes(content[::-1])
    os.utime(file, ns=times)
    assert sha256(file) == hashlib.sha256(content[::-1]).hexdigest()
    assert "weights" not in "".join(str(p) for p in (tmp_path / "cache").rglob("*"))


def saved(config, folder, seed):
    """Saves freshly initialised weights as the only checkpoint of a run; returns the state."""
    method = make_method(config)
    state, _ = method.init(jax.random.key(seed))
    if "ema" in state:
        state["ema"] = jax.tree.map(lambda p: p + 1.0, state["ema"])
    workdir.claim(folder, config, method)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(4, state, {"examples": 32})
    return state


def started(config, folder):
    """Returns the state and frozen weights that training starts with."""
    method, mesh = make_method(config), sharding.make_mesh(1, 1)
    workdir.claim(folder, config, method)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return restore_or_init(method, mesh, config, folder, checkpoints)[:2]


def test_a_run_starts_from_another(config, tmp_path):
    config.method.trained = ("controlnet", "unet")
    other = saved(config, tmp_path / "other", seed=5)
    config.train.init_from = str(tmp_path / "other")
    config.train.learning_rate = 1e-5
    state, _ = started(config, tmp_path / "both")
    for part in (state["params"], state["ema"]):
        jax.tree.map(np.testing.assert_array_equal, part, other["ema"])
    assert int(state["step"]) == 0

    # After its first checkpoint the run no longer needs the other, even with frozen networks.
    with Checkpoints(tmp_path / "both" / "checkpoints") as checkpoints:
        checkpoints.save(1, state, {"examples": 8})
    shutil.move(tmp_path / "other", tmp_path / "away")
    started(config, tmp_path / "both")
    shutil.move(tmp_path / "away", tmp_path / "other")

    # Networks trained in the other run may be frozen here; then each start reads them.
    config.method.trained = ("controlnet",)
    state, frozen = started(config, tmp_path / "one")
    jax.tree.map(
        np.testing.assert_array_equal, state["params"]["controlnet"], other["ema"]["controlnet"]
    )
    jax.tree.map(np.testing.assert_array_equal, frozen["unet"], other["ema"]["unet"])
    with Checkpoints(tmp_path / "one" / "checkpoints") as checkpoints:
        checkpoints.save(2, state, {"examples": 16})
    _, frozen = started(config, tmp_path / "one")
    jax.tree.map(np.testing.assert_array_equal, frozen["unet"], other["ema"]["unet"])
    shutil.move(tmp_path / "other", tmp_path / "moved")
    with pytest.raises(InputError, match="the weights that this run started from are gone"):
        started(config, tmp_path / "one")
    config.train.init_from = str(tmp_path / "moved")
    started(config, tmp_path / "one")
    saved_again = tmp_path / "moved" / "checkpoints" / "4"
    shutil.rmtree(saved_again)
    with pytest.raises(InputError, match="it holds no checkpoint"):
        started(config, tmp_path / "new")


@pytest.mark.slow
def test_additions_and_embedders_start_from_another_run(config, tmp_path):
    config.method.trained = ("controlnet", "unet_lora")
    other = saved(config, tmp_path / "lora", seed=3)
    config.train.init_from = str(tmp_path / "lora")
    state, _ = started(config, tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, state["params"], other["ema"])

    from configs import siamese

    twin = siamese.get_config("smoke")
    twin.data, twin.method.network = config.data, "iresnet18"
    other = saved(twin, tmp_path / "twin", seed=3)
    twin.train.init_from = str(tmp_path / "twin")
    state, _ = started(twin, tmp_path / "twin again")
    for part in ("params", "statistics"):
        jax.tree.map(np.testing.assert_array_equal, state[part], other[part])


def test_networks_that_differ_are_refused(config, tmp_path):
    config.method.trained = ("controlnet", "unet")
    saved(config, tmp_path / "other", seed=5)
    config.train.init_from = str(tmp_path / "other")
    config.method.text_encoder.hidden_size = 32
    config.method.unet.cross_attention_dim = 32
    words = "is .* there and .* in this run. Give both the same networks"
    with pytest.raises(InputError, match=words):
        started(config, tmp_path / "narrow")
    from configs import pix2pix

    gan = pix2pix.get_config("smoke")
    gan.data, gan.train.init_from = config.data, str(tmp_path / "other")
    with pytest.raises(InputError, match="holds the network 'controlnet', which this run lacks"):
        started(gan, tmp_path / "gan")
    gan.train.init_from = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="train.init_from=.*it holds no checkpoint"):
        started(gan, tmp_path / "none")


def test_a_workdir_of_before_a_field_has_its_default(config, tmp_path):
    method = mock.Mock(spec=Method, settings={})
    method.weight_hashes.return_value = {}
    workdir.claim(tmp_path, config, method)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for name in ("timesteps", "outline_weight", "true_outline"):
        del fields["method"][name]
    del fields["augment"]["skin"]
    path.write_text(json.dumps(fields))
    workdir.check(tmp_path, config, method)
    config.method.timesteps = "cubic"
    with pytest.raises(InputError, match="method.timesteps is None there and 'cubic' here"):
        workdir.check(tmp_path, config, method)
