"""The paper's workflow in miniature: 120 procedural heads at 128 pixels, on two cores.

python -m cranio_jax.main --config=configs/demo.py --workdir=/tmp/cranio

It starts from `phantom_sd`, the small Stable Diffusion that ships with the program, and from its
ControlNet, and trains ControlNet and U-Net on 100 people whom neither has seen. The networks that
ship are described in cranio_jax/assets/README.md.

Without any training, the ControlNet that ships makes a face of an X-ray:

python -m cranio_jax.main --config=configs/demo.py --config.job=reconstruct \
    --config.reconstruct.xrays=docs/xray_frontal.png

Variant 'varied' starts from `phantom_cranio_diff`, which was trained on X-rays as varied as real
ones: use it for X-rays of your own.

Variants 'phantom_controlnet' and 'phantom_cranio_diff' are the recipes of these networks. In the
first a ControlNet grows from the U-Net, as the paper's does. So it does in 'grown', on the cohort's
people; in 'without_prior' all but the autoencoder starts from scratch. Both are for
configs/study_128.py. 'smoke' runs every part in a minute or two.
"""

import ml_collections

from configs import common, text_to_image


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings."""
    c = common.get_config()
    c.name = "demo"
    c.data.settings.size = 128
    c.data.cranio_phantom.appearances = 2
    c.data.cached_variants = 2
    c.pretrained.update(model="shipped:phantom_sd", controlnet="shipped:phantom_controlnet")
    c.prompt.update(tokenizer="pretrained", length=32, known_ages=(25, 45, 65))
    c.augment.update(flip=0.0, rotation=3.0, erase=0.02, bend=0.015)

    c.method.update(
        name="cranio_diff",
        # Trained parts: any of controlnet, unet, unet_lora and text_encoder.
        trained=("controlnet", "unet"),
        codec="vae",  # from pictures to latents: 'vae', or 'patch' (rearranges pixels)
        prompt_dropout=0.1,  # probability of an empty prompt in training
        timesteps="uniform",  # that are trained on, or 'cubic': mostly those of much noise
        outline_weight=0.0,  # how much more latents at the head's outline count in the loss
        # Probability that training shows the true outline, not the one found. With
        # augment.radiograph, X-rays then show thin soft tissue too, as for the outline network.
        true_outline=0.0,
        # Weight of each timestep: 'none', 'epsilon', 'v_prediction', 'sample' or 'min_snr'.
        loss_weight="none",
        min_snr_gamma=5.0,  # for loss_weight='min_snr'
    )
    c.method.losses.update(
        identity=0.05,
        embedder_file="shipped:phantom_embedder.safetensors",
        lateral_identity=True,
        every=4,
        decode_batch=2,
    )
    c.train.update(
        batch_size=16,
        num_steps=120,
        checkpoint_every=60,
        learning_rate=2e-4,
        schedule="cosine",
        warmup_steps=20,
        weight_decay=1e-2,
        ema_decay=0.99,
    )
    c.sampling.update(num_steps=10, guidance_scale=1.5)
    c.evaluate.update(num_samples=1, kernel_subset=40)
    c.evaluate.weights = "shipped:phantom_judge.safetensors"
    common.apply_variant(
        c,
        variant,
        {
            "phantom_controlnet": phantom_controlnet,
            "phantom_cranio_diff": phantom_cranio_diff,
            "varied": varied,
            "grown": grown,
            "without_prior": without_prior,
            "smoke": smoke,
        },
    )
    return c


def phantom_controlnet(c: ml_collections.ConfigDict) -> None:
    """Sets the people and the length with which the ControlNet that ships was trained."""
    _grow(c)
    common.network_people(c, seed=0)
    c.data.cranio_phantom.appearances = 3
    c.data.cached_variants = 1
    c.method.trained = ("controlnet",)
    c.method.losses.identity = 0.0
    c.train.update(
        batch_size=32,
        num_steps=2_500,
        checkpoint_every=250,
        learning_rate=6e-4,
        warmup_steps=100,
        ema_decay=0.999,
    )


def phantom_cranio_diff(c: ml_collections.ConfigDict) -> None:
    """Sets what follows: X-rays as varied as real ones, and a U-Net that is trained with them."""
    phantom_controlnet(c)
    c.pretrained.controlnet = "shipped:phantom_controlnet"
    c.method.controlnet = {}
    c.data.cranio_phantom.update(vary_xrays=True, dry=0.15)
    c.data.cached_variants = 4
    # The bend is large, since real jaws differ more than those of procedural people.
    c.augment.update(flip=0.3, bend=0.03, skin=0.015, radiograph=1.0)
    # Profiles must follow the outline of the head in the X-ray.
    c.pretrained.outline = "shipped:phantom_cranio_diff"
    c.method.update(
        trained=("controlnet", "unet"), timesteps="cubic", outline_weight=4.0, true_outline=0.7
    )
    c.train.update(batch_size=16, num_steps=17_331, learning_rate=3e-4)


def varied(c: ml_collections.ConfigDict) -> None:
    """Sets networks that were trained on varied X-rays, and trains them on such X-rays."""
    c.pretrained.update(model="shipped:phantom_cranio_diff", controlnet="")
    c.augment.radiograph = 1.0


def grown(c: ml_collections.ConfigDict) -> None:
    """Sets a ControlNet that grows, and all appearances of the people."""
    _grow(c)
    c.data.cranio_phantom.appearances = 9
    c.data.cached_variants = 4
    c.train.update(
        num_steps=2_500,
        checkpoint_every=250,
        learning_rate=3e-4,
        warmup_steps=100,
        ema_decay=0.999,
    )


def without_prior(c: ml_collections.ConfigDict) -> None:
    """Sets networks of the same sizes that start from scratch, and the same autoencoder."""
    grown(c)
    c.pretrained.update(model="", vae="shipped:phantom_sd", tokenizer="shipped:phantom_sd")
    c.method.trained = ("controlnet", "unet", "text_encoder")
    small = text_to_image.get_config().method
    c.method.update(unet=small.unet, text_encoder=small.text_encoder, scheduler=small.scheduler)


def _grow(c: ml_collections.ConfigDict) -> None:
    """Sets a ControlNet that starts as a copy of the U-Net's encoder."""
    c.pretrained.controlnet = ""
    c.method.controlnet = dict(conditioning_embedding_out_channels=(8, 16, 48, 96))


def smoke(c: ml_collections.ConfigDict) -> None:
    """Sets a run that passes through every part and learns nothing."""
    c.data.cranio_phantom.update(subjects=24, appearances=1)
    c.data.cached_variants = 1
    c.method.losses.every = 2
    c.train.update(batch_size=8, num_steps=4, log_every=2, checkpoint_every=2, warmup_steps=2)
    c.sampling.num_steps = 2
    c.evaluate.update(bootstrap=200, pictures=2, batch_size=8)
    c.evaluate.retrieval.ks = (1, 3)
