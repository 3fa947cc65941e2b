"""The comparison at 128 pixels, with networks that start from a model which draws faces already.

python launch/study.py --study=configs/study_128.py --workdir=DIR

There are 120 procedural heads: 90 for training, 10 for validation, 20 for the test. Cranio-Diff
starts from `phantom_sd`, which was trained on faces of other people and has seen no X-ray. Its
ControlNet grows from the U-Net, as the paper's does. Every method is trained on 64,000 pictures,
but for those whose flags say otherwise.

The judge of identity and the embedder of the loss are those that ship.

Variant 'published' also scores with the networks in --weights=WEIGHTS (safetensors files of LPIPS
and ArcFace).
"""

import ml_collections

from configs import common

_CRANIO_DIFF = "configs/demo.py:grown"
_FIRST = (0,)
# Chosen on the validation people, before the test people were looked at; see docs/study.md.
_SAMPLING = ("sampling.num_steps=10", "sampling.guidance_scale=1.5", "sampling.temperature=0.2")
_PIX2PIX = ("train.num_steps=4000", "method.discriminator_layers=3")
_PROFILE = ("method.profile=True",)
_DRY = ("data.cranio_phantom.dry=1.0",)
# An untrained ControlNet stays zero, so only the prompt conditions the face.
_PROMPT_ALONE = ("method.trained=('unet',)",)
_CONTROLNET_ALONE = ("method.trained=('controlnet',)",)
_NO_IDENTITY = ("method.losses.identity=0.0",)
# It learns which pictures show the same person, so they must not be deformed.
_MATCHER = ("validation.every=0", "augment.bend=0.0")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings of a study; see launch/study.py."""
    c = ml_collections.ConfigDict()
    c.name = "study_128"
    # Rows that carry the claim have all of them, the others the first.
    c.seeds = (0, 1, 2)
    c.headline = "cranio_diff"  # the method that is compared with the baselines
    c.baselines = ("pix2pix", "pix2pix with profile", "cyclegan", "cut")
    c.bootstrap = 10_000  # rounds of resampling behind each interval
    # Flags of every cell.
    c.flags = (
        "data.settings.size=128",
        "data.validation_subjects=10",
        "train.batch_size=16",
        "train.checkpoint_every=250",
        "train.keep=1",
    )
    # Flags of every method. Pix2Pix memorises ninety people unless pictures are deformed.
    c.method_flags = (
        "evaluate.weights=shipped:phantom_judge.safetensors",
        "evaluate.num_samples=4",
        "validation.every=500",
        "augment.bend=0.015",
    )
    c.helpers = ()
    c.methods = (
        _method("cranio_diff", _CRANIO_DIFF, _SAMPLING),
        _method("pix2pix", "configs/pix2pix.py:phantom", _PIX2PIX),
        _method("siamese", "configs/siamese.py:phantom", (*_MATCHER, "method.side=128")),
        _method(
            "pix2pix with profile", "configs/pix2pix.py:phantom", (*_PIX2PIX, *_PROFILE), _FIRST
        ),
        # What each part gives.
        _method(
            "cranio_diff ControlNet alone",
            _CRANIO_DIFF,
            (*_SAMPLING, *_CONTROLNET_ALONE),
            _FIRST,
        ),
        _method("cranio_diff without identity", _CRANIO_DIFF, (*_SAMPLING, *_NO_IDENTITY), _FIRST),
        _method("cranio_diff from scratch", "configs/demo.py:without_prior", _SAMPLING, _FIRST),
        _method("prompt alone", _CRANIO_DIFF, (*_SAMPLING, *_PROMPT_ALONE), _FIRST),
        # What bone alone tells.
        _method("cranio_diff dry skulls", _CRANIO_DIFF, (*_SAMPLING, *_DRY), _FIRST),
        _method("pix2pix dry skulls", "configs/pix2pix.py:phantom", (*_PIX2PIX, *_DRY), _FIRST),
        _method(
            "siamese dry skulls",
            "configs/siamese.py:phantom",
            (*_MATCHER, "method.side=128", *_DRY),
            _FIRST,
        ),
        # Other ways.
        _method(
            "iccr_diff recipe",
            _CRANIO_DIFF,
            (*_SAMPLING, *_CONTROLNET_ALONE, "method.prompt_dropout=0.5"),
            _FIRST,
        ),
        _method(
            "cyclegan", "configs/cyclegan.py:phantom", ("method.discriminator_layers=3",), _FIRST
        ),
        _method("cut", "configs/cut.py:phantom", ("method.discriminator_layers=3",), _FIRST),
    )
    common.apply_variant(c, variant, {"published": published})
    return c


def published(c: ml_collections.ConfigDict) -> None:
    """Scores with published networks too."""
    _, *others = c.method_flags
    weights = "evaluate.weights=shipped:phantom_judge.safetensors,{weights}/*.safetensors"
    c.method_flags = (weights, *others)


def _method(
    name: str, config: str, flags: tuple[str, ...], seeds: tuple[int, ...] | None = None
) -> dict:
    """Returns a row; one without seeds has those of the study."""
    method = dict(name=name, config=config, flags=flags)
    return method if seeds is None else method | dict(seeds=seeds)
