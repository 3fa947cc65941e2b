"""CycleGAN with the settings of the skull-to-face study that Cranio-Diff is compared with.

python -m cranio_jax.main --config=configs/cyclegan.py --workdir=DIR \
    --config.data.builder=skull_face --config.data.skull_face.manifest=LIST

Variant 'original' has the settings of Zhu et al. (batches of one). 'phantom' is for the procedural
cohort at 64 pixels on two cores. 'smoke' runs every part in seconds.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the study's settings.

    The study states the image size, the batch size, the number of blocks, the learning rate,
    and the weights of the cycle and identity losses.
    """
    c = common.get_config()
    c.name = "cyclegan"
    common.adversarial(c)
    c.method.update(
        name="cyclegan",
        blocks=9,  # residual blocks of the generator
        cycle=10.0,  # weight of the cycle loss
        identity=5.0,  # weight of CycleGAN's identity loss, not of the identity term
        pool=50,  # earlier generated pictures that the discriminator sees again
    )
    common.apply_variant(
        c, variant, {"original": original, "phantom": phantom, "smoke": common.smoke}
    )
    return c


def original(c: ml_collections.ConfigDict) -> None:
    """Sets the authors' defaults, with 200 epochs of the study's 1800 pairs."""
    c.train.update(batch_size=1, num_steps=200 * 1800)


def phantom(c: ml_collections.ConfigDict) -> None:
    """Sets six blocks, as the authors do up to 128 pixels, with a quarter of the channels."""
    common.phantom(c)
    c.train.num_steps = 3000
    c.method.update(channels=16, blocks=6, discriminator_layers=2)
