"""Fields that every experiment has, with the values that most keep."""

import ml_collections

_SPLIT = dict(split="seed", test_fraction=1 / 6, on_bad_row="stop")


def records() -> dict:
    """Which records: what all builders ask for, and a block for each of what it alone does. See data_builders/README.md."""
    return dict(
        builder="cranio_phantom",
        data_dir="",  # TFDS's own folder if empty; gs://BUCKET/FOLDER has a local copy
        cache_dir="",  # where such copies lie: ~/.cache/cranio_jax if empty
        settings=dict(size=64, pairing="matched", seed=0),
        cranio_phantom=dict(subjects=120, skin_spread=0.06, hair_spread=1.0, depth_spread=1.0),
        skull_face=dict(manifest="", root="", salt="", align=False, text="paint_over", **_SPLIT),
        ct_heads=dict(
            manifest="", root="", salt="", variants=0, turn=3.0, shift=3.0, bend=5.0, **_SPLIT
        ),
        iit_mandi_s2f=dict(folder=""),
    )


def get_config() -> ml_collections.ConfigDict:
    """A complete configuration; experiments change what they need."""
    c = ml_collections.ConfigDict()
    c.name = "unnamed"
    c.job = "train_and_evaluate"
    c.seed = 0
    c.profile_steps = 0  # so many steps of a training are traced for TensorBoard
    c.compute_dtype = "float32"  # "bfloat16" on accelerators; parameters stay float32

    c.data = records()
    # What frozen networks make of the pictures and prompts is kept beside the records, of so many augmented variants of each
    # pair; 0: made anew at each step.
    c.data.update(cached_variants=0, validation_subjects=0)
    # The paper's augmentations, and one of ours: a smooth displacement that X-ray and face share, in parts of the picture.
    c.augment = dict(flip=0.5, rotation=5.0, brightness=0.15, contrast=0.20, erase=0.05, bend=0.0)
    # The wording is ours; the paper names the biometrics only. tokenizer: "words", or "pretrained" for the checkpoint's. A run
    # refuses a template whose prompts need more than `length` tokens (18 here), or hold words that the tokenizer doesn't know.
    c.prompt = dict(
        template="portrait of a {noun}, {view} view, {age} years old, {bmi}",
        tokenizer="words",
        length=20,
        known_ages=(),
    )
    c.prompt.omits = ()  # of view, sex, age and bmi, what the template leaves out on purpose
    # Stable Diffusion 1.x or 2.x, and perhaps a ControlNet and an autoencoder in place of its own:
    # a diffusers folder, a hub id, or a single file as CivitAI has them; empty: from scratch. LoRA
    # files (with commas between them) are merged; a `unet_lora` that fits starts from one. A single
    # file needs CLIP's tokenizer, a folder or hub id; empty: OpenAI's, through the hub's cache.
    c.pretrained = dict(
        model="", controlnet="", vae="", tokenizer="", lora="", lora_scale=1.0, revision=""
    )
    c.mesh = dict(data=-1, fsdp=1)

    c.train = dict(
        batch_size=16,
        num_steps=1000,
        stop_at=0,
        accumulate=1,
        log_every=20,
        checkpoint_every=500,
        keep=2,
        keep_period=0,
    )
    c.train.update(
        learning_rate=1e-4,
        schedule="constant",
        warmup_steps=100,
        b1=0.9,
        b2=0.999,
        weight_decay=1e-5,
        clip_norm=1.0,
        ema_decay=0.999,
    )
    c.train.remat = False  # activations of U-Net and ControlNet are computed again for the gradients: less memory, more time
    c.train.init_from = ""  # the workdir of another run, with whose weights this one starts

    c.sampling = dict(
        sampler="ddim",
        num_steps=50,
        spacing="trailing",
        eta=0.0,
        guidance_scale=7.5,
        controlnet_scale=1.0,
        clip=0.0,
    )
    # As in diffusers; the X-ray leads from control_start to control_end, as parts of the steps.
    c.sampling.update(
        negative_prompt="", clip_skip=0, guidance_rescale=0.0, control_start=0.0, control_end=1.0
    )
    c.sampling.temperature = 1.0  # factor of all noise; see cranio_jax/diffusion/samplers.py
    c.evaluate = dict(
        batch_size=40, num_samples=4, keep_faces=True, max_subjects=0, bootstrap=10_000, pictures=8
    )
    # Files of feature networks, comma-separated, with wildcards: each is recognised, and brings its metrics. What published
    # embedders of faces see is `crop`: top, left, height and width, as parts of the picture.
    c.evaluate.update(
        weights="",
        crop=(0.2, 0.2, 0.65, 0.6),
        kernel_subset=100,
        kernel_rounds=100,
        inception_splits=10,
    )
    # Two folders of pictures in place of a checkpoint. Those of the same names are compared in pairs, if `paired` and if all
    # names agree, else the folders as sets; `names` finds (?P<subject>...), (?P<view>...) and (?P<variant>...) in a name.
    c.evaluate.update(generated="", reference="", names="", paired=True)
    # Protocols: faces of the 'same' view or 'any', 'all' real faces of a subject or 'one'; more people for the gallery.
    c.evaluate.retrieval = dict(
        protocols=("same/all", "same/one", "any/all", "any/one"), ks=(1, 5, 10)
    )
    c.evaluate.retrieval.distractors = records() | dict(builder="", split="train")
    # The decoded terms of the loss, a part of `method`; files of weights are the
    # user's, `decoder` a folder of TAESD that stands in for the autoencoder's. See cranio_jax/methods/decoded.py.
    c.method = ml_collections.ConfigDict()
    # Rates of networks that shall not go at train.learning_rate; the rank of 'unet_lora', whose alpha is the same.
    c.method.update(learning_rates={}, lora_rank=16)
    # Fields of diffusers' and transformers' config.json that differ from the published ones.
    c.method.update(unet={}, controlnet={}, vae={}, text_encoder={}, scheduler={})
    c.method.losses = dict(
        lpips=0.0,
        identity=0.0,
        gate="quadratic",
        gate_limit=200,
        warmup_steps=0,
        every=1,
        decode_batch=0,
    )
    c.method.losses.update(trunk="vgg", trunk_file="", heads_file="", embedder_file="", decoder="")
    c.method.losses.update(crop=(0.2, 0.2, 0.65, 0.6), lateral_identity=False)
    # Scores of the first `examples` validation pictures (data.validation_subjects) every so many steps while it trains.
    c.validation = dict(every=0, num_steps=5, examples=64)
    c.export = dict(weights="ema", dtype="float32")
    c.reconstruct = dict(
        xrays="",
        inverted=False,
        view="frontal",
        sex="female",
        age=45.0,
        bmi_change=0.0,
        num_samples=4,
        batch_size=4,
    )
    return c


def adversarial(c: ml_collections.ConfigDict) -> None:
    """What Pix2Pix, CycleGAN and CUT have in common in the skull-to-face study: Adam with a short memory, 200 epochs of 1800 pairs."""
    c.data.settings.update(size=256, pairing="matched")
    c.train.update(
        learning_rate=2e-4, b1=0.5, b2=0.999, weight_decay=0.0, clip_norm=0.0, warmup_steps=0
    )
    c.train.update(
        batch_size=16, num_steps=200 * 1800 // 16, schedule="linear"
    )  # the rate falls over the second half
    c.evaluate.num_samples = 1
    # Rates of networks that shall not go at train.learning_rate; the authors' files to start from, by network.
    c.method = dict(
        gan="lsgan",
        norm="instance",
        channels=64,
        discriminator_layers=3,
        learning_rates={},
        files={},
    )


def variant_of(c: ml_collections.ConfigDict, variant: str, made: dict) -> None:
    """Changes `c` as the function of `made` by that name does. Raises ValueError where there is none."""
    if variant and variant not in made:
        raise ValueError(
            f"configs/{c.name}.py has no variant {variant!r}; expected {', '.join(made)} or none"
        )
    if variant:
        c.name += f":{variant}"
        made[variant](c)


def phantom(c: ml_collections.ConfigDict) -> None:
    """The embedded cohort at 64 pixels, as configs/demo.py has it, for two cores."""
    c.data.settings.update(size=64, pairing="matched")
    c.augment.update(flip=0.0, rotation=3.0, erase=0.02)
    c.prompt.known_ages = (25, 45, 65)
    c.train.update(checkpoint_every=400)


def smoke(c: ml_collections.ConfigDict) -> None:
    """Every part in seconds; nothing is learnt."""
    phantom(c)
    c.data.cranio_phantom.subjects = 24
    c.method.update(channels=8)
    c.train.update(batch_size=8, num_steps=6, log_every=2, checkpoint_every=3)
    c.evaluate.update(bootstrap=200, pictures=2)
    c.evaluate.retrieval.ks = (1, 3)
