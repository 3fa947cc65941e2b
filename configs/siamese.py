"""A matcher of X-rays and faces without a generated face between them; it enters the table of retrieval alone.

python -m cranio_jax.main --config=configs/siamese.py --workdir=DIR --config.data.builder=skull_face --config.data.skull_face.manifest=LIST

Variant 'phantom' is for the embedded cohort at 64 pixels on two cores, 'smoke' runs every part in seconds.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """All choices here are ours."""
    c = common.get_config()
    c.name = "siamese"
    c.data.settings.update(size=256, pairing="matched")
    c.method = dict(name="siamese", network="iresnet50", channels=64, side=112, margin=1.0)
    c.train.update(
        batch_size=64,
        num_steps=10_000,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=200,
        weight_decay=5e-2,
        clip_norm=5.0,
    )
    common.variant_of(c, variant, {"phantom": phantom, "smoke": smoke})
    return c


def phantom(c: ml_collections.ConfigDict) -> None:
    """A small network that sees all 64 pixels."""
    common.phantom(c)
    c.method.update(network="iresnet18", channels=16, side=64)
    c.train.update(num_steps=1000, learning_rate=2e-3, warmup_steps=50)


def smoke(c: ml_collections.ConfigDict) -> None:
    """Nothing is learnt."""
    common.smoke(c)
    c.method.update(network="iresnet18", channels=8, side=32)
    c.train.warmup_steps = 2
