"""A network that matches X-rays and faces directly, without generating a face.

python -m cranio_jax.main --config=configs/siamese.py --workdir=DIR \
    --config.data.builder=skull_face --config.data.skull_face.manifest=LIST

It appears in the retrieval table only. Variant 'phantom' is for the procedural cohort at 64 pixels
on two cores. 'smoke' runs every part in seconds.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings."""
    c = common.get_config()
    c.name = "siamese"
    c.data.settings.update(size=256, pairing="matched")
    c.method = dict(
        name="siamese",
        network="iresnet50",
        channels=64,  # channels of the first layer
        side=112,  # side of the network's input, in pixels
        margin=1.0,  # least distance of different people's vectors in the loss
    )
    c.train.update(
        batch_size=64,
        num_steps=10_000,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=200,
        weight_decay=5e-2,
        clip_norm=5.0,
    )
    common.apply_variant(c, variant, {"phantom": phantom, "smoke": smoke})
    return c


def phantom(c: ml_collections.ConfigDict) -> None:
    """Sets a small network that sees all 64 pixels."""
    common.phantom(c)
    c.method.update(network="iresnet18", channels=16, side=64)
    c.train.update(num_steps=1000, learning_rate=2e-3, warmup_steps=50)


def smoke(c: ml_collections.ConfigDict) -> None:
    """Sets a run that passes through every part in seconds and learns nothing."""
    common.smoke(c)
    c.method.update(network="iresnet18", channels=8, side=32)
    c.train.warmup_steps = 2
