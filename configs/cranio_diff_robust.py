"""Cranio-Diff with the settings that small cohorts bear: the ControlNet trained slowly and averaged for long.

The U-Net stays as it is; variant 'unet' trains it at a fifth of the rate, 'lora' low-rank additions to its attention.

python -m cranio_jax.main --config=configs/cranio_diff_robust.py --workdir=DIR --config.pretrained.model=FOLDER_OR_HUB_ID \
    --config.method.losses.embedder_file=iresnet50.pth

Memory: 361 million trained parameters x 20 bytes = 7 GB, 2 GB of frozen weights in bfloat16, and activations; 16 GB with eight
images on one H200, without the decoded terms, whose memory has not been measured. Duration, counted: 2.3 TFLOP an image, 8.1
more for the quarter that is decoded, and 480,000 images are two and a half hours at 24 % of one H200's peak, which the step
without these terms reaches (README).
"""

import ml_collections

from configs import cranio_diff


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """All choices here are ours."""
    c = cranio_diff.get_config()
    c.name = "cranio_diff_robust"
    c.method.update(
        trained=("controlnet",), prompt_dropout=0.1, loss_weight="min_snr", min_snr_gamma=5.0
    )
    # An estimate from high noise has no identity; and the ControlNet must take hold before the term may pull.
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
    if variant == "unet":
        c.name += ":unet"
        c.method.trained = ("controlnet", "unet")
        c.method.learning_rates.unet = 2e-6
    elif variant == "lora":
        c.name += ":lora"
        c.method.trained = ("controlnet", "unet_lora")
        c.method.learning_rates.unet_lora = 1e-4
    elif variant:
        raise ValueError(
            f"configs/cranio_diff_robust.py has no variant {variant!r}; expected 'unet', 'lora' or none"
        )
    return c
