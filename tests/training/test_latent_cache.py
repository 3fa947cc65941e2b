"""The cache of what frozen networks make of the records."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cranio_jax import data
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method
from cranio_jax.methods.cranio_diff import CranioDiff
from cranio_jax.training import latent_cache, loop
from tests.fresh import fresh


@pytest.fixture(scope="module")
def own_records(tmp_path_factory):
    return tmp_path_factory.mktemp("own") / "records"


@pytest.fixture
def config(config, own_records):
    """With a small autoencoder; the ControlNet alone is trained.

    The records are a copy, since other processes encode the shared ones.
    """
    if not own_records.exists():
        shared = pathlib.Path(str(data.make_builder(config.data).data_dir))
        place = own_records / shared.relative_to(config.data.data_dir)
        shutil.copytree(shared, place, ignore=shutil.ignore_patterns("encoded"))
    config.data.data_dir = str(own_records)
    config.method.update(codec="vae", trained=("controlnet",))
    config.method.vae = dict(block_out_channels=(8, 8, 8), norm_num_groups=4, layers_per_block=1)
    config.method.vae.down_block_types, config.method.vae.up_block_types = (
        ("DownEncoderBlock2D",) * 3,
        ("UpDecoderBlock2D",) * 3,
    )
    config.method.unet.update(in_channels=4, out_channels=4)
    config.data.cached_variants = 2
    config.augment.update(flip=0.5, rotation=5.0, bend=0.02, skin=0.01)
    return config


@pytest.fixture
def builder(config):
    return data.make_builder(config.data)


@pytest.fixture
def cache(config, builder):
    """The folder of the cache, empty."""
    folder = pathlib.Path(str(builder.data_dir)) / "encoded"
    for file in folder.glob("*"):
        file.unlink()
    yield folder
    for file in folder.glob("*"):
        file.unlink()


def prepared(config, builder, start=fresh):
    """`(method, state, frozen, examples, prepare)`."""
    mesh, method = sharding.make_mesh(), make_method(config)
    state, frozen = start(method, config.seed)
    return (
        method,
        state,
        frozen,
        *latent_cache.training_examples(config, method, mesh, frozen, builder),
    )


def shapes(method, seed):
    return jax.eval_shape(method.init, jax.random.key(seed))  # where no value matters


@pytest.fixture
def written(monkeypatch, cache):
    """Names of the files that would be written; content is not computed."""
    made = []

    def write(_, path, *args):
        made.append(path.name)
        path.parent.mkdir(exist_ok=True)
        path.touch()

    monkeypatch.setattr(latent_cache, "_write", write)
    monkeypatch.setattr(
        latent_cache, "_mapped", lambda path, count, shape: np.zeros((count, *shape.shape[1:]))
    )
    return made


def names(cache):
    return {file.name for file in cache.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_cached_and_fresh_give_the_same_step(config, builder, cache, dtype):
    config.compute_dtype = dtype
    method, state, frozen, examples, prepare = prepared(config, builder)
    assert (
        names(cache) == {name for name in names(cache) if name.startswith(("latents_", "context_"))}
        and len(names(cache)) == 2
    )
    rows = [prepare(examples[i], np.random.default_rng(i)) for i in range(8)]
    assert all(
        "face" not in row and row["latents"].shape == (8, 8, 4) and row["latents"].dtype == dtype
        for row in rows
    )
    # The same examples with the same draws, whose faces are encoded by the step itself.
    whole = data.Examples(builder, "train", config, ("xray", "face", "head_mask"))
    fresh = []
    for i in range(8):
        rng = np.random.default_rng(i)
        variant = np.random.default_rng([config.seed, i, int(rng.integers(2))])
        fresh.append(data.expose(data.move(whole[i], variant, config.augment), rng, config.augment))
        np.testing.assert_array_equal(fresh[i]["xray"], rows[i]["xray"])

    def stack(rows):
        return {
            name: np.stack([row[name] for row in map(data.to_device_fields, rows)])
            for name in data.to_device_fields(rows[0])
        }

    assert set(stack(fresh)) ^ set(stack(rows)) == {"face", "latents", "context", "head_mask"}
    # Bit for bit what the networks give...
    made = jax.jit(method.encode)(frozen, sharding.put_batch(stack(fresh), sharding.make_mesh()))
    for field in ("latents", "context"):
        np.testing.assert_array_equal(np.asarray(made[field]), stack(rows)[field])
    # ... and so the same loss, as far as a program with them inside rounds alike.
    draws = {
        "timesteps": jnp.arange(8) * 100,
        "noise": jnp.ones((8, 8, 8, 4)),
        "drop_prompt": jnp.zeros(8, bool),
    }
    loss = jax.jit(lambda batch: method.loss(state["params"], frozen, batch, draws)[0])
    np.testing.assert_allclose(
        loss(stack(rows)), loss(stack(fresh)), rtol=1e-5 if dtype == "float32" else 2e-2
    )


def test_a_second_start_encodes_nothing(config, builder, cache, monkeypatch, tmp_path, quick_steps):
    config.train.stop_at = 2
    loop.train(config, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    monkeypatch.setattr(latent_cache, "_write", lambda *args: pytest.fail("encoded again"))
    config.train.stop_at = 4
    state = loop.train(config, tmp_path)
    assert int(state["step"]) == 4 and len(before) == 2
    assert before == {file: file.stat().st_mtime_ns for file in cache.iterdir()}


@pytest.mark.parametrize(
    "change,renewed",
    [
        (dict(augment=dict(rotation=4.0)), {"latents"}),
        (dict(augment=dict(skin=0.0)), {"latents"}),
        (dict(augment=dict(brightness=0.3)), set()),
        (dict(data=dict(cached_variants=3)), {"latents"}),
        (dict(data=dict(synthetic=())), {"latents"}),
        (dict(prompt=dict(template="{noun} {age} {view} {bmi}")), {"context"}),
        (dict(seed=1), {"latents", "context"}),  # weights are drawn from it, too
        (dict(compute_dtype="bfloat16"), {"latents", "context"}),
    ],
)
def test_what_content_depends_on_renews_it(config, builder, written, change, renewed):
    prepared(config, builder, shapes)
    first = set(written)
    config.update(change)
    prepared(config, builder, shapes)
    assert {name.split("_")[0] for name in first} == {"latents", "context"}
    assert {name.split("_")[0] for name in set(written) - first} == renewed


def test_weights_and_records_are_part_of_the_name(config, builder, written, monkeypatch):
    prepared(config, builder, shapes)
    monkeypatch.setattr(data, "fingerprint", lambda builder: "other records")
    prepared(config, builder, shapes)
    assert [name.split("_")[0] for name in written] == ["context", "latents", "latents"]
    real = CranioDiff.encodable
    monkeypatch.setattr(
        CranioDiff,
        "encodable",
        lambda self: {f: v | {"weights": "others"} for f, v in real(self).items()},
    )
    prepared(config, builder, shapes)
    assert len(set(written)) == len(written) == 5


def test_trained_networks_are_not_cached(config, builder, written):
    config.method.trained = ("controlnet", "text_encoder", "vae")
    *_, examples, prepare = prepared(config, builder, shapes)
    row = prepare(examples[0], np.random.default_rng(0))
    assert (
        {"face", "prompt_ids"} < set(row) and not {"latents", "context"} & set(row) and not written
    )


def test_faces_stay_where_the_loss_reads_them(config, builder, written, monkeypatch):
    monkeypatch.setattr(CranioDiff, "needs_faces", True)
    *_, examples, prepare = prepared(config, builder, shapes)
    row = prepare(examples[0], np.random.default_rng(0))
    variant = np.random.default_rng([config.seed, 0, int(np.random.default_rng(0).integers(2))])
    np.testing.assert_array_equal(
        row["face"], data.move(examples[0], variant, config.augment)["face"]
    )


def test_without_masks_skin_is_not_moved_in_silence(config, builder, written, monkeypatch):
    monkeypatch.delitem(builder.info.features._feature_dict, "head_mask")
    with pytest.raises(InputError, match="hold no head_mask, which augment.skin=0.01 needs. Use"):
        prepared(config, builder, shapes)


def test_a_folder_that_takes_no_file(config, builder, cache):
    if cache.exists():
        cache.rmdir()
    cache.write_text("")  # where the folder would be
    try:
        with pytest.raises(
            InputError,
            match=r"can't hold the .* GB of encoded records .* set data.cached_variants=0",
        ):
            prepared(config, builder)
    finally:
        cache.unlink()


def test_a_damaged_file_is_named(config, builder, cache):
    prepared(config, builder)
    file = next(cache.glob("latents_*"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{file.name} is damaged; remove it"):
        prepared(config, builder)


def test_bfloat16_survives_the_file(tmp_path):
    values = jnp.asarray([[1.5, -3.25], [1e-30, 7e30]], jnp.bfloat16)
    np.save(tmp_path / "a.npy", np.asarray(values).view("u2"))
    np.testing.assert_array_equal(
        latent_cache._mapped(tmp_path / "a.npy", 2, jax.ShapeDtypeStruct((1, 2), jnp.bfloat16)),
        np.asarray(values),
    )
