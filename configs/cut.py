"""CUT with its authors' settings, at the size and batch of the skull-to-face study.

python -m cranio_jax.main --config=configs/cut.py --workdir=DIR \
    --config.data.builder=skull_face --config.data.skull_face.manifest=LIST

Variant 'original' has batches of one and 400 epochs. 'phantom' is for the procedural cohort at 64
pixels on two cores. 'smoke' runs every part in seconds.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns Park et al.'s settings.

    The study states only image size and batch size; the rest is as in its other baselines.
    """
    c = common.get_config()
    c.name = "cut"
    common.adversarial(c)
    c.method.update(
        name="cut",
        blocks=9,  # residual blocks of the generator
        nce=1.0,  # weight of the contrastive loss
        # Layers of the generator whose features are compared: the picture, both halvings, the
        # first and the fifth block.
        nce_layers=(0, 4, 8, 12, 16),
        patches=256,  # places compared in each layer
        temperature=0.07,  # of the contrastive loss
    )
    common.apply_variant(
        c, variant, {"original": original, "phantom": phantom, "smoke": common.smoke}
    )
    return c


def original(c: ml_collections.ConfigDict) -> None:
    """Sets the authors' batch size and length."""
    c.train.update(batch_size=1, num_steps=400 * 1800)


def phantom(c: ml_collections.ConfigDict) -> None:
    """Sets six blocks with a quarter of the channels."""
    common.phantom(c)
    c.train.num_steps = 3000
    c.method.update(channels=16, blocks=6, discriminator_layers=2)
