"""Stable Diffusion's autoencoder, trained on faces, from scratch or from a published one.

python -m cranio_jax.main --config=configs/autoencoder.py --workdir=DIR \
    --config.method.losses.trunk_file=FILE --config.method.losses.heads_file=FILE

Evaluation scores how well it reconstructs the faces of test people. job=export writes it for
diffusers.

Variant 'published' starts from an autoencoder, named by --config.pretrained.vae=FOLDER_OR_HUB_ID.
'phantom_sd' is the recipe of the one that ships, and 'phantom_decoder' of its last steps, which
train the decoder alone. 'phantom_profiles' trains it further, for noses and lips of all sizes.
'smoke' runs every part in a minute and learns nothing.
"""

import ml_collections

from configs import common

# A small one of our own, which shrinks pictures by 8. A published one has its own fields.
SMALL = dict(
    block_out_channels=(16, 32, 64, 96),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings."""
    c = common.get_config()
    c.name = "autoencoder"
    c.data.settings.size = 128
    c.augment.update(rotation=0.0, brightness=0.0, contrast=0.0, erase=0.0)
    c.method.update(
        name="autoencoder",
        # 'encoder' and 'decoder'. Training the decoder alone keeps the latents that a U-Net knows.
        trained=("encoder", "decoder"),
        kl=1e-5,  # weight of the latents' divergence from a standard Gaussian
    )
    c.method.vae = dict(SMALL)
    c.method.losses.update(lpips=0.5, trunk="squeeze")
    c.train.update(
        batch_size=8,
        num_steps=3_000,
        checkpoint_every=200,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=200,
        weight_decay=0.0,
        ema_decay=0.999,
    )
    c.evaluate.num_samples = 1
    common.apply_variant(
        c,
        variant,
        {
            "published": published,
            "phantom_sd": phantom_sd,
            "phantom_decoder": phantom_decoder,
            "phantom_profiles": phantom_profiles,
            "smoke": smoke,
        },
    )
    return c


def published(c: ml_collections.ConfigDict) -> None:
    """Leaves the network's fields to the published files, and trains more slowly."""
    c.method.vae = {}
    c.train.learning_rate = 1e-5


def phantom_sd(c: ml_collections.ConfigDict) -> None:
    """Sets the procedural people on whom the shipped autoencoder was trained."""
    common.network_people(c, seed=0)


def phantom_decoder(c: ml_collections.ConfigDict) -> None:
    """Sets the decoder's last steps, with less weight on LPIPS, which leaves a fine grid."""
    published(c)
    phantom_sd(c)
    c.method.trained = ("decoder",)
    c.method.losses.lpips = 0.1
    c.train.update(num_steps=1_000, learning_rate=5e-4, warmup_steps=50, ema_decay=0.99)


def phantom_profiles(c: ml_collections.ConfigDict) -> None:
    """Sets the decoder of `phantom_cranio_diff`, whose heads differ as real ones do.

    One that has seen procedural people as they are smooths other profiles.
    """
    phantom_decoder(c)
    # The outline network's records; only the depths matter here.
    c.data.cranio_phantom.update(vary_xrays=True, dry=0.15, depth_spread=2.0)
    c.augment.update(flip=0.3, rotation=3.0, bend=0.03, skin=0.015, radiograph=1.0)
    c.train.num_steps = 1_200


def smoke(c: ml_collections.ConfigDict) -> None:
    """Sets a run that passes through every part and learns nothing."""
    c.data.cranio_phantom.subjects = 24
    c.data.settings.size = 32
    c.train.update(num_steps=6, log_every=2, checkpoint_every=3, warmup_steps=2)
    c.evaluate.update(bootstrap=200, pictures=2)
    c.method.losses.lpips = 0.0
    c.method.vae.update(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
