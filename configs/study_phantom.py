"""The paper's comparison on the procedural cohort: 64 pixels, two cores, nothing to download.

python launch/study.py --study=configs/study_phantom.py --workdir=DIR

There are 120 procedural heads: 90 for training, 10 for validation, 20 for the test. The baselines
are trained on 48,000 pictures, the prompt alone on 24,000, and Cranio-Diff on 64,000, which costs
somewhat less than CycleGAN's training. The curves on the study's page show whether that was
enough. It was not for the two best methods, which are therefore listed again with 128,000 pictures.

Two face embedders are trained on the cohort: `judge` scores identity, and `taste` is part of
Cranio-Diff's loss.

Variant 'published' also scores with the networks in --weights=WEIGHTS (safetensors files of LPIPS
and ArcFace). 'smoke' runs every method in seconds and learns nothing; 'smoke_four' runs four.
"""

from collections.abc import Iterable

import ml_collections

from configs import common

# A low temperature gives the most likely face. It raises the identity scores of the validation
# subjects, and makes LPIPS slightly worse.
_DIFFUSION = ("train.num_steps=8000", "sampling.num_steps=20", "sampling.temperature=0.2")
# The identity scores of the validation subjects still rose after 8,000 steps.
_LONGER = (*_DIFFUSION, "train.num_steps=16000", "validation.every=1000")
_PROMPT_ALONE = "method.trained=('unet','text_encoder')"
# Weights ten times as large, and no warm-up, both gave worse results than no identity term.
_IDENTITY = (
    "method.losses.identity=0.01",
    "method.losses.gate=none",
    "method.losses.warmup_steps=4000",
    "method.losses.embedder_file={taste}",
    "method.losses.lateral_identity=True",
)
# Another network: an embedder is refused as the judge if its twin is in the loss.
_OTHER_NETWORK = ("method.network=mobilefacenet",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings of a study; see launch/study.py."""
    c = ml_collections.ConfigDict()
    c.name = "study_phantom"
    c.seeds = (0,)
    c.headline = "cranio_diff longer"  # the method that is compared with the baselines
    c.baselines = ("pix2pix", "pix2pix longer", "cyclegan", "cut")
    c.bootstrap = 10_000  # rounds of resampling behind each interval
    # Flags of every cell.
    c.flags = (
        "data.validation_subjects=10",
        "train.checkpoint_every=500",
        "train.keep=1",
    )
    # Flags of every method. Pix2Pix memorises ninety people unless pictures are deformed.
    c.method_flags = (
        "evaluate.weights={judge}",
        "evaluate.num_samples=1",
        "validation.every=500",
        "augment.bend=0.015",
    )
    # Embedders that are trained first; flags name their files as {judge} and {taste}.
    c.helpers = (
        dict(name="judge", config="configs/arcface.py", seed=0, flags=()),
        dict(name="taste", config="configs/arcface.py:loss", seed=1, flags=()),
    )
    # `smoke` holds the flags of the method's smoke run; a method without it has no such run.
    c.methods = (
        dict(
            name="cranio_diff",
            config="configs/from_scratch.py:fine",
            flags=(*_DIFFUSION, *_IDENTITY),
            smoke=_IDENTITY,
        ),
        dict(
            name="cranio_diff without identity",
            config="configs/from_scratch.py:fine",
            flags=_DIFFUSION,
            smoke=(),
        ),
        # An untrained ControlNet stays zero, so only the prompt conditions the face. The training
        # converges early.
        dict(
            name="prompt alone",
            config="configs/from_scratch.py:fine",
            flags=(*_DIFFUSION, _PROMPT_ALONE, "train.num_steps=3000"),
            smoke=(_PROMPT_ALONE,),
        ),
        dict(name="pix2pix", config="configs/pix2pix.py:phantom", flags=(), smoke=()),
        dict(name="cyclegan", config="configs/cyclegan.py:phantom", flags=(), smoke=()),
        dict(name="cut", config="configs/cut.py:phantom", flags=(), smoke=()),
        # It learns which pictures show the same person, so they must not be deformed.
        dict(
            name="siamese",
            config="configs/siamese.py:phantom",
            flags=("validation.every=0", "augment.bend=0.0"),
            smoke=("augment.bend=0.0",),
        ),
        dict(
            name="cranio_diff longer",
            config="configs/from_scratch.py:fine",
            flags=(*_LONGER, *_IDENTITY),
        ),
        dict(
            name="pix2pix longer",
            config="configs/pix2pix.py:phantom",
            flags=("train.num_steps=8000", "validation.every=1000"),
        ),
    )
    common.apply_variant(
        c, variant, {"published": published, "smoke": smoke, "smoke_four": smoke_four}
    )
    return c


def published(c: ml_collections.ConfigDict) -> None:
    """Scores with published networks too."""
    c.method_flags = ("evaluate.weights={judge},{weights}/*.safetensors", *c.method_flags[1:])


def smoke(c: ml_collections.ConfigDict) -> None:
    """Sets a study that runs every method in seconds and learns nothing."""
    c.bootstrap = 200
    c.flags = ("data.validation_subjects=4", "data.cranio_phantom.appearances=3")
    c.method_flags = (
        "evaluate.weights={judge}",
        "evaluate.num_samples=1",
        "augment.bend=0.015",
    )
    judge, taste = c.helpers
    c.helpers = (
        dict(judge, config="configs/arcface.py:smoke", flags=()),
        dict(taste, config="configs/arcface.py:smoke", flags=_OTHER_NETWORK),
    )
    c.headline = "cranio_diff"
    _set_methods(
        c,
        (
            dict(
                name=method["name"],
                config=method["config"].split(":")[0] + ":smoke",
                flags=method["smoke"],
            )
            for method in c.methods
            if "smoke" in method
        ),
    )


def smoke_four(c: ml_collections.ConfigDict) -> None:
    """Sets the study of `smoke` with one method of each kind."""
    smoke(c)
    names = ("cranio_diff", "pix2pix", "cut", "siamese")
    _set_methods(c, (method for method in c.methods if method["name"] in names))


def _set_methods(c: ml_collections.ConfigDict, methods: Iterable[dict]) -> None:
    """Sets the methods, and leaves out baselines that are none of them."""
    c.methods = tuple(methods)
    names = {method["name"] for method in c.methods}
    c.baselines = tuple(name for name in c.baselines if name in names)
