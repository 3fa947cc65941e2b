"""Cranio-Diff with the paper's known settings: Stable Diffusion 1.5 at 512 pixels.

The U-Net and the ControlNet are trained.

python -m cranio_jax.main --config=configs/cranio_diff.py --workdir=DIR \
    --config.pretrained.model=FOLDER_OR_HUB_ID \
    --config.method.losses.trunk_file=vgg16.pth --config.method.losses.heads_file=vgg.pth \
    --config.method.losses.embedder_file=iresnet50.pth

Memory: 1.22 billion trained parameters take 20 bytes each (float32 weights, their average, AdamW's
moments, gradients), 24 GB in all. With activations of eight images, one H200 used 33 GB. That is
without the decoded loss terms, whose memory has not been measured.

Duration, estimated from counted operations: 11.4 TFLOP an image, 8.1 of them for the decoded terms.
1.26 million images take twenty hours at 20 % of one H200's peak. The step reaches that share
without the decoded terms.

A batch of 14 cannot be divided among eight devices. Set --config.train.batch_size=16 there; the
number of steps changes with it.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the paper's settings; those that it leaves open are marked as ours."""
    c = common.get_config()
    c.name = "cranio_diff"
    c.compute_dtype = "bfloat16"  # ours
    c.data.settings.update(size=512, pairing="all_views")
    c.data.cached_variants = 8  # ours
    c.prompt.update(tokenizer="pretrained", length=77)

    # These fields are explained in configs/demo.py.
    c.method.update(
        name="cranio_diff",
        trained=("controlnet", "unet"),
        codec="vae",
        prompt_dropout=0.0,
        timesteps="uniform",
        outline_weight=0.0,
        true_outline=0.0,
        loss_weight="none",
        min_snr_gamma=5.0,
    )
    # The paper gives the weights of the terms only; gate and decode_batch are ours.
    c.method.losses.update(lpips=0.20, identity=0.20, gate="quadratic", decode_batch=0)

    c.train.update(
        batch_size=14, learning_rate=1e-4, weight_decay=1e-5, warmup_steps=0, ema_decay=0.9999
    )
    # 350 epochs of the 100 training subjects' 36 pairs, whatever the batch size.
    c.train.num_steps = 350 * 3600 // c.train.get_ref("batch_size")
    c.train.checkpoint_every = 2000
    c.sampling.update(sampler="ddim", num_steps=50, guidance_scale=7.5, controlnet_scale=1.0)
    c.evaluate.batch_size = 16
    return c
