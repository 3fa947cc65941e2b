"""Pix2Pix with the settings of the skull-to-face study that Cranio-Diff is compared with.

python -m cranio_jax.main --config=configs/pix2pix.py --workdir=DIR \
    --config.data.builder=skull_face --config.data.skull_face.manifest=LIST

Variant 'original' has the settings of Isola et al. for facades: batches of one, and the same rate
for generator and discriminator. 'phantom' is for the procedural cohort at 64 pixels on two cores.
'smoke' runs every part in seconds.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the study's settings.

    The study states the image size, the batch size, the eight levels of the U-Net, both
    learning rates, the weight of the L1 loss, and the discriminator's dropout.
    """
    c = common.get_config()
    c.name = "pix2pix"
    common.adversarial(c)
    c.method.update(
        name="pix2pix",
        gan="bce",
        norm="batch",
        l1=30.0,  # weight of the L1 loss
        dropout=True,  # in the generator
        discriminator_dropout=0.3,  # probability
        profile=False,  # whether view, sex, age and BMI are channels beside the X-ray; ours
    )
    c.method.learning_rates.D = 2e-5
    common.apply_variant(
        c, variant, {"original": original, "phantom": phantom, "smoke": common.smoke}
    )
    return c


def original(c: ml_collections.ConfigDict) -> None:
    """Sets the authors' defaults, with 200 epochs of the study's 1800 pairs."""
    c.train.update(batch_size=1, num_steps=200 * 1800)
    c.method.update(l1=100.0, discriminator_dropout=0.0)
    c.method.learning_rates = {}


def phantom(c: ml_collections.ConfigDict) -> None:
    """Sets half the channels, and one layer less in the discriminator.

    The full discriminator sees 70 pixels at a time, which is more than the picture has.
    """
    common.phantom(c)
    c.train.num_steps = 3000
    c.method.update(channels=32, discriminator_layers=2)
