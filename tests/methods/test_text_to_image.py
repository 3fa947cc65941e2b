"""Text to image: Cranio-Diff without a ControlNet, which reads the prompt and no X-ray."""

import diffusers
import jax
import numpy as np
import pytest

from cranio_jax.errors import InputError
from cranio_jax.jobs import export
from cranio_jax.methods import make_method
from cranio_jax.training import loop
from tests.evaluated import evaluated
from tests.fresh import fresh
from tests.pretrained.conftest import write_pipeline


@pytest.fixture
def prior(records):
    from configs import text_to_image

    c = text_to_image.get_config("smoke")
    c.data.data_dir = str(records)
    c.evaluate.update(batch_size=16, num_samples=1)
    c.mesh.data = 1
    return c


@pytest.fixture
def published(prior, tmp_path):
    """A configuration that starts from a small pipeline's folder."""
    from configs import text_to_image

    c = text_to_image.get_config("published")
    c.data = prior.data
    c.evaluate, c.mesh, c.train = prior.evaluate, prior.mesh, prior.train
    c.sampling.num_steps = 2
    c.prompt.length = 77
    write_pipeline(tmp_path / "FOLDER", "1.5", control=False)
    c.pretrained.model = str(tmp_path / "FOLDER")
    c.data.cached_variants = 0
    return c


def test_faces_depend_on_the_prompt_and_not_on_the_xray(prior):
    method = make_method(prior)
    assert set(method.networks) == {"unet", "text_encoder", "vae"}
    assert "controlnet" not in method.settings
    state, frozen = fresh(method)
    rng = np.random.default_rng(0)
    batch = {
        "xray": rng.integers(0, 256, (2, 32, 32, 1), np.uint8),
        "prompt_ids": rng.integers(0, 200, (2, prior.prompt.length), np.int32),
        "id_hash": np.arange(2, dtype=np.uint32),
    }
    generate = jax.jit(method.generate)

    def faces(**changed):
        return np.asarray(generate(state["params"], frozen, batch | changed, jax.random.key(1)))

    np.testing.assert_array_equal(faces(), faces(xray=255 - batch["xray"]))
    assert np.abs(faces() - faces(prompt_ids=batch["prompt_ids"][::-1])).max() > 1e-5


def test_a_controlnet_is_not_trained(prior):
    prior.method.trained = ("controlnet", "unet")
    with pytest.raises(InputError, match="'controlnet' is unknown. Use some of unet"):
        make_method(prior)


def test_the_whole_recipe(published, tmp_path, quick_steps):
    """It goes on from a published pipeline, and what it writes is one again."""
    workdir = tmp_path / "run"
    loop.train(published, workdir)
    results = evaluated(published, workdir)
    assert list(results["rows"]) == ["text_to_image", "mean face"]
    folder = export.export(published, workdir)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    before = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "FOLDER")
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(p, part).state_dict() for p in (pipeline, before))
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in ours), part
    assert "ControlNet" not in (folder / "README.md").read_text()
    # Cranio-Diff starts from it.
    from configs import cranio_diff

    c = cranio_diff.get_config()
    c.pretrained.model = str(folder)
    c.method.losses.update(lpips=0.0, identity=0.0)
    c.method.controlnet.conditioning_embedding_out_channels = (4, 8)
    assert set(make_method(c).networks) == {"controlnet", "unet", "vae", "text_encoder"}
