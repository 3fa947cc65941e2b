"""Pix2Pix with the settings of the skull-to-face study that Cranio-Diff is compared with.

python -m cranio_jax.main --config=configs/pix2pix.py --workdir=DIR --config.data.builder=skull_face --config.data.skull_face.manifest=LIST

Variant 'original' has those of Isola et al. (facades: batches of one, no rate of its own for the discriminator), 'phantom' is
for the embedded cohort at 64 pixels on two cores, 'smoke' runs every part in seconds.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Known of the study: 256 pixels, batches of 16, eight levels, both rates, the weight of L1, the discriminator's dropout."""
    c = common.get_config()
    c.name = "pix2pix"
    common.adversarial(c)
    c.method.update(
        name="pix2pix", gan="bce", norm="batch", l1=30.0, dropout=True, discriminator_dropout=0.3
    )
    c.method.learning_rates.D = 2e-5
    common.variant_of(c, variant, {"original": original, "phantom": phantom, "smoke": common.smoke})
    return c


def original(c: ml_collections.ConfigDict) -> None:
    """The authors' defaults, 200 epochs of the study's 1800 pairs."""
    c.train.update(batch_size=1, num_steps=200 * 1800)
    c.method.update(l1=100.0, discriminator_dropout=0.0)
    c.method.learning_rates = {}


def phantom(c: ml_collections.ConfigDict) -> None:
    """Half the channels, one layer less in the discriminator: its 70 pixels are more than a picture of 64."""
    common.phantom(c)
    c.train.num_steps = 3000
    c.method.update(channels=32, discriminator_layers=2)
