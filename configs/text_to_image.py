"""A U-Net and a text encoder, trained on faces and prompts in an autoencoder's latents.

python -m cranio_jax.main --config=configs/text_to_image.py --workdir=DIR \
    --config.pretrained.vae=FOLDER --config.pretrained.tokenizer=WORDS

Both start from scratch. `python -m cranio_jax.data tokenizer WORDS` learns a tokenizer, and
configs/autoencoder.py trains an autoencoder. job=export writes a pipeline for diffusers, from which
configs/cranio_diff.py starts.

Variant 'published' starts from a pipeline, named by --config.pretrained.model=FOLDER_OR_HUB_ID.
'phantom_sd' is the recipe of the one that ships.
'smoke' runs every part in a minute and learns nothing.
"""

import ml_collections

from configs import autoencoder, common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings."""
    c = common.get_config()
    c.name = "text_to_image"
    c.data.settings.size = 128
    c.data.cached_variants = 1
    c.prompt.update(tokenizer="pretrained", length=32, known_ages=(25, 45, 65))
    c.augment.update(rotation=0.0, brightness=0.0, contrast=0.0, erase=0.0)

    # These fields are explained in configs/demo.py.
    c.method.update(
        name="text_to_image",
        trained=("unet", "text_encoder"),
        codec="vae",
        prompt_dropout=0.1,
        timesteps="uniform",
        outline_weight=0.0,
        true_outline=0.0,
        # The steps of most noise decide what the prompt says; weights by SNR would silence them.
        loss_weight="none",
        min_snr_gamma=5.0,
    )
    c.method.scheduler = dict(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        steps_offset=1,
    )
    c.method.unet = dict(
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    c.method.text_encoder = dict(
        vocab_size=640,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    c.train.update(
        batch_size=32,
        num_steps=4_000,
        learning_rate=6e-4,
        schedule="cosine",
        warmup_steps=200,
        weight_decay=1e-2,
        ema_decay=0.999,
    )
    c.sampling.update(num_steps=20, guidance_scale=2.0)
    c.evaluate.num_samples = 1
    common.apply_variant(
        c, variant, {"published": published, "phantom_sd": phantom_sd, "smoke": smoke}
    )
    return c


def published(c: ml_collections.ConfigDict) -> None:
    """Leaves the networks and the noise schedule to the files of a pipeline."""
    c.prompt.length = 77
    for part in ("unet", "text_encoder", "scheduler"):
        c.method[part] = {}
    c.train.update(learning_rate=1e-5)


def phantom_sd(c: ml_collections.ConfigDict) -> None:
    """Sets the procedural people on whom the shipped networks were trained."""
    # A prompt does not tell whether a face looks to the left or to the right.
    c.augment.flip = 0.0
    common.network_people(c, seed=0)


def smoke(c: ml_collections.ConfigDict) -> None:
    """Sets a run that passes through every part and learns nothing."""
    c.data.cranio_phantom.subjects = 24
    c.data.settings.size = 32
    c.method.unet.update(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=2,
        norm_num_groups=4,
    )
    c.method.vae = autoencoder.SMALL | dict(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
    c.prompt.update(tokenizer="words", length=20)
    c.train.update(batch_size=8, num_steps=6, log_every=2, checkpoint_every=3, warmup_steps=2)
    c.sampling.num_steps = 2
    c.evaluate.update(bootstrap=200, pictures=2)
