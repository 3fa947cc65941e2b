"""Every configuration field, with its default, its meaning and its unit.

The experiments in this folder start from `get_config` and change what they need. Any field can be
set on the command line: `--config.train.batch_size=8`. A count of 0 means "off" or "no limit"
where the comment says so. Fractions are between 0 and 1.
"""

from collections.abc import Callable, Mapping

import ml_collections


def records() -> dict:
    """Returns the fields that choose the records, with a block for each builder.

    See data_builders/README.md.
    """
    return dict(
        # cranio_phantom, skull_face, ct_heads, cephalograms or iit_mandi_s2f.
        builder="cranio_phantom",
        # Folder of the records; empty: TFDS's default. gs://BUCKET/FOLDER is copied to the disk.
        data_dir="",
        # Folder for these local copies; empty: ~/.cache/cranio_jax.
        cache_dir="",
        # Splits whose synthetic faces are used, of records that tell them apart. In others, only
        # photographs are.
        synthetic=("train",),
        # How often a synthetic face is trained on, in relation to a photograph.
        synthetic_weight=1.0,
        # For all builders.
        settings=dict(
            size=64,  # side of the square X-rays and faces, in pixels
            # How X-rays and faces of a subject are paired: 'matched' (of the same view),
            # 'all_views' (each X-ray with each face), or 'listed' (the rows of a list; skull_face).
            pairing="matched",
            seed=0,  # of the cohort, and of the split by subject
        ),
        # The procedural cohort.
        cranio_phantom=dict(
            subjects=120,  # number of people
            # 'cohort', or 'networks': people whom no cohort has, to train what others start from.
            people="cohort",
            appearances=9,  # at how many of the nine pairs of age and BMI each is portrayed
            # Whether each face has X-rays of its own, with other rays, energies, processing and
            # dental metal each.
            vary_xrays=False,
            dry=0.0,  # fraction of the X-rays without soft tissue, as of a dry skull
            skin_spread=0.06,  # relative standard deviation of the skin's luminance
            hair_spread=1.0,  # factor of the differences in hair and eyes
            depth_spread=1.0,  # factor of the published standard deviations of tissue depth
        ),
        # Your own X-rays and photographs.
        skull_face=dict(
            manifest="",  # CSV, Excel or Parquet file that lists the pairs
            root="",  # folder from which its paths start; empty: the list's own
            salt="",  # file of the secret behind the pseudonyms; empty: beside the list
            # Frame faces: frontal ones by their landmarks (the list's, or found), lateral ones by
            # the box that is found around them.
            align=False,
            # YuNet, which finds faces: its .onnx file, or its hub id.
            detector="opencv/face_detection_yunet",
            text="paint_over",  # text in X-rays: 'paint_over', 'refuse' such X-rays, or 'keep'
            split="seed",  # 'seed', 'column' of the list, or a file that names the test subjects
            test_fraction=1 / 6,  # fraction of the subjects that is held out for the test
            on_bad_row="stop",  # 'stop', or 'skip' bad rows and list them in the metadata
        ),
        # CT volumes, rendered to X-rays and faces.
        ct_heads=dict(
            manifest="",  # as for skull_face
            root="",  # as for skull_face
            salt="",  # as for skull_face
            dry=0.0,  # fraction of the heads whose X-rays lack soft tissue, as of a dry skull
            variants=0,  # virtual subjects made of each training head, in addition to itself
            turn=3.0,  # its rotation about each axis: standard deviation in degrees
            shift=3.0,  # its movement along each axis: standard deviation in mm
            bend=5.0,  # its deformation: root mean square of the displacement in mm
            split="seed",  # as for skull_face
            test_fraction=1 / 6,  # as for skull_face
            on_bad_row="stop",  # as for skull_face
        ),
        # Lateral X-rays with landmarks, for errors in millimetres.
        cephalograms=dict(
            manifest="",  # as for skull_face
            root="",  # as for skull_face
            salt="",  # as for skull_face
            mm_per_pixel=0.1,  # side of a file's pixel in mm, where the list does not say
            soft_tissue="keep",  # 'keep', or 'mask' what is in front of the bone
            text="paint_over",  # as for skull_face
            on_bad_row="stop",  # as for skull_face
        ),
        # The public data set IIT_Mandi_S2F.
        iit_mandi_s2f=dict(
            folder="",  # folder of its zip file, or of the unpacked files, and of its embeddings
        ),
    )


def get_config() -> ml_collections.ConfigDict:
    """Returns a complete configuration; experiments change what they need."""
    c = ml_collections.ConfigDict()
    c.name = "unnamed"  # of the experiment, in tables and reports
    # train_and_evaluate, train, evaluate, reconstruct, report, status, export, inspect or
    # synthesize.
    c.job = "train_and_evaluate"
    c.seed = 0  # of all random draws but those of the records (data.settings.seed)
    c.profile_steps = 0  # number of training steps to trace for TensorBoard; 0: none
    # Type of the activations: 'float32', or 'bfloat16' on accelerators. Parameters stay float32.
    c.compute_dtype = "float32"

    c.data = records()
    c.data.update(
        # Number of augmented variants of each pair whose latents and text embeddings are cached
        # beside the records; 0: encode them at each step.
        cached_variants=0,
        validation_subjects=0,  # training subjects to hold out for validation
    )

    # The paper's augmentations; `bend`, `skin` and `radiograph` are ours.
    c.augment = dict(
        flip=0.5,  # probability of mirroring X-ray and face
        rotation=5.0,  # largest rotation of X-ray and face, in degrees
        brightness=0.15,  # largest change of the X-ray's brightness, as a fraction of its range
        contrast=0.20,  # largest change of the X-ray's contrast, as a fraction
        erase=0.05,  # largest rectangle erased from the X-ray, as a fraction of its area
        # Standard deviation of a smooth displacement that X-ray and face of the same view share,
        # as a fraction of the side. The whole head is sheared and stretched by 3.5 times as much.
        bend=0.0,
        # Standard deviation of a displacement of the skin alone, as a fraction of the side: soft
        # tissue is thicker or thinner, in bumps as large as half a lip to a nose. Needs records
        # with `head_mask`.
        skin=0.0,
        # How varied X-rays are, as those of other devices, films and holders: 0 as they are, 1 as
        # real ones. Framing and tilt move the face too; see cranio_jax/data/radiographs.py.
        radiograph=0.0,
    )

    # The wording is ours; the paper names the biometrics only. A run refuses prompts that are
    # longer than `length` tokens, that hold words the tokenizer does not know, or that are the
    # same for different profiles.
    c.prompt = dict(
        # May name {view}, {sex}, {noun}, {age} and {bmi}.
        template="portrait of a {noun}, {view} view, {age} years old, {bmi}",
        tokenizer="words",  # 'words' (packaged), or 'pretrained' for the checkpoint's
        length=20,  # tokens of a prompt, padding included; this template needs 18
        known_ages=(),  # if set, each age is rounded to the nearest of these, in years
        omits=(),  # of view, sex, age and bmi, those that the template leaves out on purpose
    )

    # Stable Diffusion 1.x or 2.x to start from.
    c.pretrained = dict(
        # A diffusers folder, a hub id, or a single .safetensors or .ckpt file; empty: from scratch.
        model="",
        controlnet="",  # a ControlNet to use in place of the model's own
        vae="",  # an autoencoder to use in place of the model's own, or without a model
        # Folder or hub id of CLIP's tokenizer, for a single file; empty: OpenAI's, from the hub's
        # cache.
        tokenizer="",
        # LoRA files to merge, separated by commas. A trained `unet_lora` starts from one that fits.
        lora="",
        lora_scale=1.0,  # factor of the merged LoRA files
        # File of a network that finds the head's outline in X-rays, which the ControlNet then sees
        # beside the X-ray, or a folder that holds it; see configs/outline.py. Empty: the model's
        # own, if it has one.
        outline="",
        revision="",  # of the hub's repository; empty: its default
    )

    # Axes of the device mesh. Both divide the batch.
    c.mesh = dict(
        data=-1,  # devices along the first axis; -1: all that are left
        fsdp=1,  # devices that share one copy of large parameters, averages and moments
    )

    c.train = dict(
        batch_size=16,  # examples of a step, on all devices together
        num_steps=1000,  # length of the training, in steps
        stop_at=0,  # step after which this start ends, e.g. for a test; 0: num_steps
        accumulate=1,  # pieces of a batch whose gradients are computed one after another
        log_every=20,  # steps between log lines
        checkpoint_every=500,  # steps between checkpoints; 0: only at the end
        keep=2,  # number of newest checkpoints that are kept
        keep_period=0,  # checkpoints at multiples of this step are kept too; 0: none
        # The optimizer: AdamW.
        learning_rate=1e-4,
        # 'constant'; 'cosine' to zero; or 'linear': constant for the first half, then to zero.
        schedule="constant",
        warmup_steps=100,  # steps in which the rate rises linearly from zero
        b1=0.9,  # decay of the gradients' average
        b2=0.999,  # decay of the squared gradients' average
        weight_decay=1e-5,
        clip_norm=1.0,  # largest global norm of the gradients; 0: no clipping
        ema_decay=0.999,  # decay per step of the parameters' moving average, which is evaluated
        # Recompute activations of U-Net and ControlNet for the gradients: less memory, more time.
        remat=False,
        init_from="",  # workdir of another run, from whose averaged weights this one starts
    )

    # Sampling of faces. Names that diffusers has too mean the same there.
    c.sampling = dict(
        sampler="ddim",  # ddim, ddpm, dpm++2m, euler, euler_ancestral or unipc
        num_steps=50,  # sampling steps
        spacing="trailing",  # of the timesteps: 'leading', 'trailing' or 'linspace'
        eta=0.0,  # fresh noise of DDIM, from 0 (none) to 1 (as much as DDPM)
        guidance_scale=7.5,  # weight of classifier-free guidance; 1: none
        controlnet_scale=1.0,  # factor of the ControlNet's residuals
        clip=0.0,  # cut estimates of the clean latents to [-clip, clip]; 0: no limit
        negative_prompt="",  # prompt to be guided away from
        clip_skip=0,  # number of last text encoder layers to skip
        guidance_rescale=0.0,  # from 0 (none) to 1, against overexposure by guidance
        control_start=0.0,  # fraction of the steps after which the ControlNet starts
        control_end=1.0,  # fraction of the steps after which it stops
        temperature=1.0,  # factor of all noise; see cranio_jax/diffusion/samplers.py
    )

    c.evaluate = dict(
        batch_size=40,  # faces generated or scored at a time
        num_samples=4,  # faces generated of each test example
        keep_faces=True,  # write generated faces to WORKDIR/faces, and reuse those that are there
        split="test",  # whose faces are scored: 'test', or 'validation' to choose settings
        max_subjects=0,  # evaluate this many subjects only; 0: all
        # How varied the test people's X-rays are made, as by augment.radiograph: 0 as they are, 1
        # as real ones. Heads stay where they are.
        radiograph=0.0,
        # Rows of faces from bad X-rays: any of 'rotated', 'blurred', 'cropped' and 'underexposed'.
        disturbances=(),
        bootstrap=10_000,  # rounds of resampling behind each interval
        pictures=8,  # examples shown in the report
        # Files of feature networks, separated by commas, with wildcards. Each is recognised by its
        # tensors, and adds its metrics.
        weights="",
        # Part of a face that published embedders see: top, left, height and width, as fractions.
        crop=(0.2, 0.2, 0.65, 0.6),
        kernel_subset=100,  # images of a subset for the kernel distance (KID)
        kernel_rounds=100,  # subsets drawn for the kernel distance
        inception_splits=10,  # parts of the images for the Inception score
        # Two folders of pictures to score in place of a checkpoint's faces.
        generated="",  # folder of the generated pictures
        reference="",  # folder of the real pictures
        # Regular expression for the pictures' names, with the groups (?P<subject>...),
        # (?P<view>...) and (?P<variant>...).
        names="",
        # Compare pictures in pairs if all names agree; False, or other names: compare the folders
        # as sets.
        paired=True,
    )
    c.evaluate.retrieval = dict(
        # Each is VIEWS/FACES. VIEWS: faces of the 'same' view as the X-ray's, or of 'any'. FACES:
        # 'all' real faces of a subject, or 'one'.
        protocols=("same/all", "same/one", "any/all", "any/one"),
        ks=(1, 5, 10),  # ranks k of recall@k
        # Records whose faces are added to the gallery; an empty builder adds none.
        distractors=records() | dict(builder="", split="train"),
    )

    # The method's own fields are added by each experiment. Those here are Cranio-Diff's.
    c.method = ml_collections.ConfigDict()
    c.method.update(
        learning_rates={},  # of networks that differ from train.learning_rate, by network
        lora_rank=16,  # rank of `unet_lora`, and its alpha
        # Fields of diffusers' and transformers' config.json that differ from the published ones.
        unet={},
        controlnet={},
        vae={},
        text_encoder={},
        scheduler={},
    )
    # Loss terms on the decoded face. See cranio_jax/methods/cranio_diff/losses.py.
    c.method.losses = dict(
        lpips=0.0,  # weight of the perceptual term; 0: off
        identity=0.0,  # weight of the identity term; 0: off
        # Weight by timestep t of T: 'none' (all alike), 'quadratic' ((1 - t/T)^2), or 'below'
        # (only t < gate_limit).
        gate="quadratic",
        gate_limit=200,  # timestep, for gate='below'
        warmup_steps=0,  # steps in which the weights rise linearly
        every=1,  # steps between computations of the terms; train.log_every is a multiple of it
        decode_batch=0,  # examples of a batch that are decoded; 0: all
        trunk="vgg",  # of LPIPS: 'vgg', 'alex' or 'squeeze'
        trunk_file="",  # file of the trunk's weights
        heads_file="",  # file of LPIPS's heads
        embedder_file="",  # file of the face embedder
        decoder="",  # folder of a TAESD that decodes in place of the autoencoder; empty: none
        # Part of a face that a published embedder sees, where the records have no landmarks.
        crop=(0.2, 0.2, 0.65, 0.6),
        lateral_identity=False,  # apply the identity term to lateral faces too
    )

    # Scores of validation pictures during the training (needs data.validation_subjects).
    c.validation = dict(
        every=0,  # steps between validations; 0: none
        num_steps=5,  # sampling steps
        examples=64,  # number of pictures, spread evenly over the validation examples
    )

    # job=export writes a diffusers pipeline.
    c.export = dict(
        weights="ema",  # 'ema' (the moving average), or 'raw'
        dtype="float32",  # 'float32' or 'float16'; also of the file of a trained embedder
    )

    # job=synthesize makes faces at other ages and weights of a list's photographs.
    c.synthesize = dict(
        ages=(25.0, 45.0, 65.0),  # years
        bmi_changes=(-10.0, 0.0, 10.0),  # percent of the person's own body mass index
        # From the photograph to a noise level: 'noise' adds noise, 'inversion' follows DDIM back.
        way="inversion",
        strength=1.0,  # share of the sampling steps that are run from there, up to 1
        iterations=10,  # evaluations of the network for each step of an inversion, at most
        num_candidates=1,  # faces drawn for each wanted one, with way='noise'
        embedder_file="",  # face-recognition network that chooses among them
        least_cosine=0.3,  # similarity to the photograph below which no face is kept
        folder="synthesized",  # of the pictures, in the list's root
        batch_size=16,
    )

    # job=reconstruct generates faces of X-ray files.
    c.reconstruct = dict(
        xrays="",  # X-ray files, separated by commas, with wildcards
        inverted=False,  # True if bone is dark in them
        view="frontal",  # of the faces: 'frontal' or 'lateral'
        sex="female",  # 'female' or 'male'
        age=45.0,  # years
        bmi_change=0.0,  # change of the body mass index, in percent
        num_samples=4,  # faces of each X-ray
        batch_size=4,  # faces generated at a time
    )
    return c


def adversarial(c: ml_collections.ConfigDict) -> None:
    """Sets the fields that Pix2Pix, CycleGAN and CUT share in the skull-to-face study.

    These are Adam with b1 = 0.5, and 200 epochs of 1800 pairs.
    """
    c.data.settings.update(size=256, pairing="matched")
    c.train.update(
        learning_rate=2e-4,
        b1=0.5,
        b2=0.999,
        weight_decay=0.0,
        clip_norm=0.0,
        warmup_steps=0,
        batch_size=16,
        num_steps=200 * 1800 // 16,
        schedule="linear",
    )
    c.evaluate.num_samples = 1
    c.method = dict(
        gan="lsgan",  # adversarial loss: 'lsgan' (least squares) or 'bce' (cross-entropy)
        norm="instance",  # normalisation: 'instance' or 'batch'
        channels=64,  # channels of the first layer, in generator and discriminator
        discriminator_layers=3,  # strided layers of the discriminator
        learning_rates={},  # of networks that differ from train.learning_rate, by network
        files={},  # the authors' weights to start from, by network
    )


def apply_variant(
    c: ml_collections.ConfigDict,
    variant: str,
    variants: Mapping[str, Callable[[ml_collections.ConfigDict], None]],
) -> None:
    """Applies a variant of an experiment; an empty name changes nothing.

    Args:
      c: the experiment's configuration, which is changed in place.
      variant: the variant's name.
      variants: by name, functions that change a configuration.

    Raises:
      ValueError: the experiment has no such variant.
    """
    if not variant:
        return
    check_variant(c.name, variant, list(variants))
    c.name += f":{variant}"
    variants[variant](c)


def check_variant(name: str, variant: str, known: list[str]) -> None:
    """Raises ValueError if configs/`name`.py has no such variant."""
    if variant and variant not in known:
        advice = f"Use {', '.join(known)} or none." if known else "Leave it out."
        raise ValueError(f"configs/{name}.py has no variant {variant!r}. {advice}")


def phantom(c: ml_collections.ConfigDict) -> None:
    """Sets the procedural cohort at 64 pixels, as in configs/from_scratch.py, for two cores."""
    c.data.settings.update(size=64, pairing="matched")
    c.augment.update(flip=0.0, rotation=3.0, erase=0.02)
    c.prompt.known_ages = (25, 45, 65)
    c.train.update(checkpoint_every=400)


def network_people(c: ml_collections.ConfigDict, seed: int, subjects: int = 1200) -> None:
    """Sets people on whom a network that ships is trained: five in six of `subjects`.

    No cohort has them, so nobody is both in a shipped network and among a study's test people. Each
    network that is judged by another has a seed, and thus people, of its own.
    """
    c.data.settings.update(size=128, pairing="matched", seed=seed)
    c.data.cranio_phantom.update(people="networks", subjects=subjects, appearances=3)
    c.prompt.known_ages = (25, 45, 65)
    c.evaluate.max_subjects = 20


def smoke(c: ml_collections.ConfigDict) -> None:
    """Sets a run that passes through every part in seconds and learns nothing."""
    phantom(c)
    c.data.cranio_phantom.subjects = 24
    c.method.update(channels=8)
    c.train.update(batch_size=8, num_steps=6, log_every=2, checkpoint_every=3)
    c.evaluate.update(bootstrap=200, pictures=2)
    c.evaluate.retrieval.ks = (1, 3)
