"""CUT with its authors' settings, at the size and batch of the skull-to-face study.

python -m cranio_jax.main --config=configs/cut.py --workdir=DIR --config.data.builder=skull_face --config.data.skull_face.manifest=LIST

Variant 'original' has batches of one and 400 epochs, 'phantom' is for the embedded cohort at 64 pixels on two cores, 'smoke'
runs every part in seconds.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Park et al.'s settings; of the study's only the size and the batch are known, and those of its other baselines are taken."""
    c = common.get_config()
    c.name = "cut"
    common.adversarial(c)
    c.method.update(
        name="cut", blocks=9, nce=1.0, nce_layers=(0, 4, 8, 12, 16), patches=256, temperature=0.07
    )
    common.variant_of(c, variant, {"original": original, "phantom": phantom, "smoke": common.smoke})
    return c


def original(c: ml_collections.ConfigDict) -> None:
    """The authors' batch and length."""
    c.train.update(batch_size=1, num_steps=400 * 1800)


def phantom(c: ml_collections.ConfigDict) -> None:
    """Six blocks of a quarter of the channels."""
    common.phantom(c)
    c.train.num_steps = 3000
    c.method.update(channels=16, blocks=6, discriminator_layers=2)
