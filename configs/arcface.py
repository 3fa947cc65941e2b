"""A face embedder trained on a cohort, to score identity without published ArcFace weights.

python -m cranio_jax.main --config=configs/arcface.py --workdir=/tmp/arcface

Then --config.evaluate.weights=/tmp/arcface/embedder.safetensors scores faces with it. Variant
'loss' has another seed, network and augmentation. Use it in a method's loss: an embedder must not
score a method that was trained with it.

'phantom_judge' and 'phantom_embedder' are the recipes of those that ship: the first scores faces,
the second is part of the demo's loss. They have other people, seeds and networks.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings, for the cohort of configs/from_scratch.py."""
    c = common.get_config()
    c.name = "arcface"
    c.augment.update(flip=0.0, rotation=5.0)
    c.method = dict(
        name="arcface",
        network="iresnet18",  # 'iresnet18', 'iresnet50', 'iresnet100', 'mobilefacenet'
        channels=16,  # channels of the first layer
        height=48,  # of the network's input, in pixels
        width=48,
        # Part of the picture that is seen: top, left, height and width, as fractions. It leaves
        # out most of the hair, which identifies people but does not follow from the skull.
        crop=(0.2, 0.15, 0.7, 0.7),
        margin=0.3,  # additive angular margin, in radians
        scale=24.0,  # factor of the cosines
    )
    # Augmentation of the faces, for the same reason.
    c.method.disturb = dict(
        shift=0.05,  # largest movement, as a fraction of the side
        zoom=0.05,  # largest change of size, as a fraction
        colour=0.3,  # largest gain and offset of each channel
        grey=0.5,  # probability of a grey picture
    )
    c.train.update(
        batch_size=64,
        num_steps=600,
        checkpoint_every=300,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=50,
        weight_decay=5e-2,
        clip_norm=5.0,
    )
    common.apply_variant(
        c,
        variant,
        {
            "loss": loss,
            "phantom_judge": phantom_judge,
            "phantom_embedder": phantom_embedder,
            "smoke": smoke,
        },
    )
    return c


def loss(c: ml_collections.ConfigDict) -> None:
    """Sets another network and augmentation, for the embedder in a method's loss."""
    c.seed = 1
    c.method.update(network="mobilefacenet", crop=(0.15, 0.1, 0.8, 0.8))
    c.method.disturb.update(shift=0.08, zoom=0.1, colour=0.2, grey=0.2)


def phantom_judge(c: ml_collections.ConfigDict) -> None:
    """Sets the people on whom the network that scores faces was trained."""
    common.network_people(c, seed=1, subjects=600)
    c.train.num_steps = 1_500
    c.export.dtype = "float16"


def phantom_embedder(c: ml_collections.ConfigDict) -> None:
    """Sets the people on whom the network in the demo's loss was trained."""
    loss(c)
    common.network_people(c, seed=0)
    # This small network did not learn to tell all 1,000 people apart, nor with a margin.
    c.data.validation_subjects = 600
    c.method.margin = 0.0
    c.train.num_steps = 1_500
    c.export.dtype = "float16"


def smoke(c: ml_collections.ConfigDict) -> None:
    """Sets a run that passes through every part in seconds and learns nothing."""
    c.data.cranio_phantom.subjects = 24
    c.method.channels = 8
    c.train.update(batch_size=16, num_steps=6, log_every=2, checkpoint_every=3, warmup_steps=2)
    c.evaluate.bootstrap = 200
    c.evaluate.retrieval.ks = (1, 3)
