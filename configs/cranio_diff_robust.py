"""Cranio-Diff for small cohorts: the ControlNet is trained slowly and averaged over many steps.

The U-Net is not trained. Variant 'unet' trains it at a fifth of the rate; 'lora' trains low-rank
additions to its attention.

python -m cranio_jax.main --config=configs/cranio_diff_robust.py --workdir=DIR \
    --config.pretrained.model=FOLDER_OR_HUB_ID \
    --config.method.losses.embedder_file=iresnet50.pth

Memory: 361 million trained parameters take 20 bytes each, 7 GB in all. The frozen weights take 2 GB
in bfloat16. With activations of eight images, one H200 used 16 GB. That is without the decoded
loss terms, whose memory has not been measured.

Duration, estimated from counted operations: 2.3 TFLOP an image, and 8.1 more for the quarter of the
images that is decoded. 480,000 images take two and a half hours at 24 % of one H200's peak. The
step reaches that share without the decoded terms.
"""

import ml_collections

from configs import common, cranio_diff


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings."""
    c = cranio_diff.get_config()
    c.name = "cranio_diff_robust"
    c.method.update(
        trained=("controlnet",), prompt_dropout=0.1, loss_weight="min_snr", min_snr_gamma=5.0
    )
    # An estimate from high noise has no identity, so the gate closes there. The warm-up lets the
    # ControlNet learn before the term takes effect.
    c.method.losses.update(
        lpips=0.0,
        identity=0.1,
        gate="below",
        gate_limit=200,
        warmup_steps=2000,
        every=2,
        decode_batch=8,
    )
    c.train.update(
        batch_size=16, learning_rate=1e-5, weight_decay=1e-2, warmup_steps=500, num_steps=30_000
    )
    common.apply_variant(c, variant, {"unet": unet, "lora": lora})
    return c


def unet(c: ml_collections.ConfigDict) -> None:
    """Trains the U-Net too, at a fifth of the ControlNet's rate."""
    c.method.trained = ("controlnet", "unet")
    c.method.learning_rates.unet = 2e-6


def lora(c: ml_collections.ConfigDict) -> None:
    """Trains low-rank additions to the U-Net's attention too."""
    c.method.trained = ("controlnet", "unet_lora")
    c.method.learning_rates.unet_lora = 1e-4
