"""A network that finds the outline of the head, soft tissue included, in an X-ray.

python -m cranio_jax.main --config=configs/outline.py --workdir=/tmp/outline

Cranio-Diff's ControlNet sees its outline beside the X-ray if
--config.pretrained.outline=/tmp/outline/outline.safetensors is set. Variant 'phantom_outline' is
for networks that others start from: no cohort has its people. 'smoke' runs every part in seconds.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings, for the procedural cohort and X-rays as varied as real ones."""
    c = common.get_config()
    c.name = "outline"
    c.data.settings.size = 128
    c.data.cranio_phantom.update(appearances=3, vary_xrays=True, dry=0.15)
    # The bend is large, since real jaws differ more than those of procedural people.
    c.augment.update(flip=0.3, rotation=3.0, erase=0.02, bend=0.03, radiograph=1.0)
    c.method = dict(
        name="outline",
        widths=(16, 32, 64, 64),  # channels at a half of the resolution, at a quarter, and so on
    )
    c.train.update(
        batch_size=16,
        num_steps=2_000,
        checkpoint_every=500,
        learning_rate=3e-3,
        schedule="cosine",
        warmup_steps=200,
        weight_decay=1e-3,
    )
    c.evaluate.radiograph = 1.0
    common.apply_variant(c, variant, {"phantom_outline": phantom_outline, "smoke": smoke})
    return c


def phantom_outline(c: ml_collections.ConfigDict) -> None:
    """Sets people whom no cohort has, whose soft tissue varies twice as much as in life."""
    common.network_people(c, seed=0)
    # Else the network knows too well how thick soft tissue is, and looks for it less.
    c.data.cranio_phantom.depth_spread = 2.0
    c.augment.skin = 0.015
    c.export.dtype = "float16"


def smoke(c: ml_collections.ConfigDict) -> None:
    """Sets a run that passes through every part in seconds and learns nothing."""
    c.data.settings.size = 64
    c.data.cranio_phantom.update(subjects=24, appearances=1)
    c.method.widths = (8, 16)
    c.train.update(batch_size=8, num_steps=4, log_every=2, checkpoint_every=2, warmup_steps=2)
    c.evaluate.bootstrap = 200
