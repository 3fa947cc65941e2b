"""CycleGAN with the settings of the skull-to-face study that Cranio-Diff is compared with.

python -m cranio_jax.main --config=configs/cyclegan.py --workdir=DIR --config.data.builder=skull_face --config.data.skull_face.manifest=LIST

Variant 'original' has those of Zhu et al. (batches of one), 'phantom' is for the embedded cohort at 64 pixels on two cores,
'smoke' runs every part in seconds.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Known of the study: 256 pixels, batches of 16, nine blocks, the rate, the weights of cycle and identity."""
    c = common.get_config()
    c.name = "cyclegan"
    common.adversarial(c)
    c.method.update(name="cyclegan", blocks=9, cycle=10.0, identity=5.0, pool=50)
    common.variant_of(c, variant, {"original": original, "phantom": phantom, "smoke": common.smoke})
    return c


def original(c: ml_collections.ConfigDict) -> None:
    """The authors' defaults, 200 epochs of the study's 1800 pairs."""
    c.train.update(batch_size=1, num_steps=200 * 1800)


def phantom(c: ml_collections.ConfigDict) -> None:
    """Six blocks, as the authors have for 128 pixels and less, of a quarter of the channels."""
    common.phantom(c)
    c.train.num_steps = 3000
    c.method.update(channels=16, blocks=6, discriminator_layers=2)
