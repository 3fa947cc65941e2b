"""Cranio-Diff without a pretrained prior: 120 procedural heads at 64 pixels, for the study.

python -m cranio_jax.main --config=configs/from_scratch.py --workdir=DIR

Pixels in blocks take the place of an autoencoder's latents, and all networks start from scratch.

Variant 'fine' has codec blocks of a quarter of the area: it learns more slowly at first, and is
better in the end. 'smoke' runs every part in a minute or two and learns nothing.
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings."""
    c = common.get_config()
    c.name = "from_scratch"
    c.prompt.known_ages = (25, 45, 65)
    c.augment.update(flip=0.0, rotation=3.0, erase=0.02)

    # These fields are explained in configs/demo.py.
    c.method.update(
        name="cranio_diff",
        trained=("controlnet", "unet", "text_encoder"),
        codec="patch",
        patch=4,  # side of the codec's blocks, in pixels
        prompt_dropout=0.0,
        timesteps="uniform",
        outline_weight=0.0,
        true_outline=0.0,
        loss_weight="none",
        min_snr_gamma=5.0,
    )
    c.method.scheduler = dict(
        beta_schedule="squaredcos_cap_v2", prediction_type="sample", rescale_betas_zero_snr=True
    )
    c.method.unet = dict(
        in_channels=48,
        out_channels=48,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    c.method.controlnet = dict(conditioning_embedding_out_channels=(16, 32, 64))
    c.method.text_encoder = dict(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=20,
    )

    c.train.update(
        batch_size=8,
        num_steps=800,
        checkpoint_every=400,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=50,
        weight_decay=1e-2,
        ema_decay=0.99,
    )
    c.sampling.update(num_steps=5, guidance_scale=1.0, clip=1.0)
    c.evaluate.num_samples = 3
    common.apply_variant(c, variant, {"fine": fine, "smoke": smoke})
    return c


def fine(c: ml_collections.ConfigDict) -> None:
    """Sets codec blocks of 2 x 2, and three levels.

    The finest level has half the channels, so that it costs as little.
    """
    c.method.patch = 2
    c.method.unet.update(
        in_channels=12,
        out_channels=12,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    c.method.controlnet.conditioning_embedding_out_channels = (16, 32)
    c.train.num_steps = 12_000


def smoke(c: ml_collections.ConfigDict) -> None:
    """Sets a run that passes through every part and learns nothing."""
    c.data.cranio_phantom.subjects = 24
    c.train.update(num_steps=6, log_every=2, checkpoint_every=3, warmup_steps=2)
    c.sampling.num_steps = 2
    c.evaluate.update(num_samples=2, bootstrap=200, pictures=2)
    c.evaluate.retrieval.ks = (1, 3)
