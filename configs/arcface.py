"""An embedder that tells the people of a cohort apart, to score identity where no published ArcFace weights are at hand.

python -m cranio_jax.main --config=configs/arcface.py --workdir=/tmp/arcface

Then --config.evaluate.weights=/tmp/arcface/embedder.safetensors scores faces with it. Variant 'loss' has another seed,
network and augmentation: what stands in a method's loss must not be what scores it.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """All choices here are ours; for the cohort of configs/demo.py."""
    c = common.get_config()
    c.name = "arcface"
    c.augment.update(flip=0.0, rotation=5.0)
    # The crop is the face within the head; hair and skin tell people apart, and no skull tells of them.
    c.method = dict(
        name="arcface",
        network="iresnet18",
        channels=16,
        height=48,
        width=48,
        crop=(0.2, 0.15, 0.7, 0.7),
    )
    c.method.update(margin=0.3, scale=24.0)
    c.method.disturb = dict(shift=0.05, zoom=0.05, colour=0.3, grey=0.5)
    c.train.update(
        batch_size=64,
        num_steps=600,
        checkpoint_every=300,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=50,
    )
    c.train.update(weight_decay=5e-2, clip_norm=5.0)
    if variant == "loss":
        c.name += ":loss"
        c.seed = 1
        c.method.update(network="mobilefacenet", crop=(0.15, 0.1, 0.8, 0.8))
        c.method.disturb.update(shift=0.08, zoom=0.1, colour=0.2, grey=0.2)
    elif variant == "smoke":
        c.name += ":smoke"
        c.data.cranio_phantom.subjects = 24
        c.method.channels = 8
        c.train.update(batch_size=16, num_steps=6, log_every=2, checkpoint_every=3, warmup_steps=2)
        c.evaluate.bootstrap = 200
        c.evaluate.retrieval.ks = (1, 3)
    elif variant:
        raise ValueError(
            f"configs/arcface.py has no variant {variant!r}; expected 'loss', 'smoke' or none"
        )
    return c
