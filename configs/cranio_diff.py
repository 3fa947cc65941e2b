"""Cranio-Diff as the paper is known: Stable Diffusion 1.5, U-Net and ControlNet trained, 512 pixels.

python -m cranio_jax.main --config=configs/cranio_diff.py --workdir=DIR --config.pretrained.model=FOLDER_OR_HUB_ID \
    --config.method.losses.trunk_file=vgg16.pth --config.method.losses.heads_file=vgg.pth \
    --config.method.losses.embedder_file=iresnet50.pth

Memory: 1.22 billion trained parameters x 20 bytes (float32 masters, average, AdamW, gradient) = 24 GB, and activations; 33 GB
with eight images on one H200, without the decoded terms, whose memory has not been measured. Duration, counted: 11.4 TFLOP an
image (8.1 of them for the decoded terms) and 1.26 million images are twenty hours at 20 % of one H200's peak, which the step
without these terms reaches (README). A batch of 14 does not divide over eight devices: set --config.train.batch_size=16 there,
the length follows.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The paper's settings; what it leaves open is marked as ours."""
    c = common.get_config()
    c.name = "cranio_diff"
    c.compute_dtype = "bfloat16"  # ours
    c.data.settings.update(size=512, pairing="all_views")
    c.data.cached_variants = 8  # ours
    c.prompt.update(tokenizer="pretrained", length=77)

    c.method.update(name="cranio_diff", trained=("controlnet", "unet"), codec="vae")
    c.method.update(prompt_dropout=0.0, loss_weight="none", min_snr_gamma=5.0)
    # Gate and sub-batch are ours: the paper names the weights of the terms alone.
    c.method.losses.update(lpips=0.20, identity=0.20, gate="quadratic", decode_batch=0)

    c.train.update(
        batch_size=14, learning_rate=1e-4, weight_decay=1e-5, warmup_steps=0, ema_decay=0.9999
    )
    # 350 epochs of the 100 training subjects' 36 pairs, whatever the batch: 14 does not divide over every mesh.
    c.train.num_steps = 350 * 3600 // c.train.get_ref("batch_size")
    c.train.checkpoint_every = 2000
    c.sampling.update(sampler="ddim", num_steps=50, guidance_scale=7.5, controlnet_scale=1.0)
    c.evaluate.batch_size = 16
    return c
