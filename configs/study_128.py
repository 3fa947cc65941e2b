"""The comparison at 128 pixels, with networks that start from a model which draws faces already.

python launch/study.py --study=configs/study_128.py --workdir=DIR

There are 120 procedural heads: 90 for training, 10 for validation, 20 for the test. Cranio-Diff
starts from `phantom_sd`, which was trained on faces of other people and has seen no X-ray. Its
ControlNet grows from the U-Net, as the paper's does. Every method is trained on 40,000 pictures.

The judge of identity and the embedder of the loss are those that ship.

Variant 'published' also scores with the networks in --weights=WEIGHTS (safetensors files of LPIPS
and ArcFace). 'smoke' runs every method briefly and learns nothing.
"""

import ml_collections

from configs import common

_JUDGE = "evaluate.weights=shipped:phantom_judge.safetensors"
_CRANIO_DIFF = "configs/demo.py:grown"
_FROM_SCRATCH = "configs/demo.py:without_prior"
_PIX2PIX = "configs/pix2pix.py:phantom"
_SIAMESE = "configs/siamese.py:phantom"
_FIRST = (0,)
# A low temperature gives the most likely face.
_SAMPLING = ("sampling.num_steps=10", "sampling.guidance_scale=1.5", "sampling.temperature=0.2")
_CONTROLNET = ("method.trained=('controlnet',)",)
# An untrained ControlNet stays zero, so only the prompt conditions the face.
_PROMPT = ("method.trained=('unet',)",)
_NO_TERM = ("method.losses.identity=0.0",)
_DROPOUT = ("method.prompt_dropout=0.5",)
# The authors' discriminator sees 70 pixels at a time.
_LAYERS = ("method.discriminator_layers=3",)
_STEPS = ("train.num_steps=2500",)
_UNPAIRED = (*_STEPS, *_LAYERS, "evaluate.num_samples=1")  # their faces have no noise
_PIX2PIX_FLAGS = (*_STEPS, *_LAYERS)
_PROFILE = ("method.profile=True",)
# It learns which pictures show the same person, so they must not be deformed.
_SIAMESE_FLAGS = (
    "train.num_steps=625",  # of 64 pairs
    "validation.every=0",
    "augment.bend=0.0",
    "method.side=128",
)
_DRY = ("data.cranio_phantom.dry=1.0",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings of a study; see launch/study.py."""
    c = ml_collections.ConfigDict()
    c.name = "study_128"
    # The first three rows carry the claim and have all of them, the others the first.
    c.seeds = (0, 1, 2)
    c.headline = "cranio_diff"  # the method that is compared with the baselines
    c.baselines = ("pix2pix", "pix2pix with profile", "cyclegan", "cut")
    c.other_xrays = tuple(f"{name} dry skulls" for name in ("cranio_diff", "pix2pix", "siamese"))
    c.bootstrap = 10_000  # rounds of resampling behind each interval
    # Flags of every cell.
    c.flags = (
        "data.settings.size=128",
        "data.validation_subjects=10",
        "train.checkpoint_every=250",
        "train.keep=1",
    )
    # Flags of every method. Pix2Pix memorises ninety people unless pictures are deformed.
    c.method_flags = (
        _JUDGE,
        "evaluate.num_samples=4",  # for spread against error; the table has the first
        "evaluate.kernel_subset=100",
        "validation.every=500",
        "augment.bend=0.015",
    )
    c.helpers = ()
    c.methods = (
        _method("cranio_diff", _CRANIO_DIFF, _SAMPLING),
        _method("pix2pix", _PIX2PIX, _PIX2PIX_FLAGS),
        _method("siamese", _SIAMESE, _SIAMESE_FLAGS),
        _method("pix2pix with profile", _PIX2PIX, _PIX2PIX_FLAGS, _PROFILE, seeds=_FIRST),
        # Ablations.
        _method("cranio_diff ControlNet alone", _CRANIO_DIFF, _SAMPLING, _CONTROLNET, seeds=_FIRST),
        _method("cranio_diff without identity", _CRANIO_DIFF, _SAMPLING, _NO_TERM, seeds=_FIRST),
        _method("cranio_diff from scratch", _FROM_SCRATCH, _SAMPLING, seeds=_FIRST),
        _method("prompt alone", _CRANIO_DIFF, _SAMPLING, _PROMPT, seeds=_FIRST),
        # Dry skulls: what bone alone tells.
        _method("cranio_diff dry skulls", _CRANIO_DIFF, _SAMPLING, _DRY, seeds=_FIRST),
        _method("pix2pix dry skulls", _PIX2PIX, _PIX2PIX_FLAGS, _DRY, seeds=_FIRST),
        _method("siamese dry skulls", _SIAMESE, _SIAMESE_FLAGS, _DRY, seeds=_FIRST),
        # As ICCR-Diff trains its ControlNet: the base frozen, half of the prompts empty. Its
        # landmark and adversarial losses are left out; the identity loss stays.
        _method("iccr_diff recipe", _CRANIO_DIFF, _SAMPLING, _CONTROLNET, _DROPOUT, seeds=_FIRST),
        _method("cyclegan", "configs/cyclegan.py:phantom", _UNPAIRED, seeds=_FIRST),
        _method("cut", "configs/cut.py:phantom", _UNPAIRED, seeds=_FIRST),
    )
    common.apply_variant(c, variant, {"published": published, "smoke": smoke})
    return c


def published(c: ml_collections.ConfigDict) -> None:
    """Scores with published networks too."""
    others = tuple(flag for flag in c.method_flags if flag != _JUDGE)
    c.method_flags = (_JUDGE + ",{weights}/*.safetensors", *others)


def smoke(c: ml_collections.ConfigDict) -> None:
    """Sets a study that runs every method and learns nothing."""
    c.bootstrap = 200
    c.seeds = _FIRST
    c.flags = (
        "data.settings.size=128",
        "data.validation_subjects=4",
        "data.cranio_phantom.subjects=24",
        "train.batch_size=8",
        "train.log_every=4",
        "train.warmup_steps=2",
        "evaluate.bootstrap=200",
        "evaluate.retrieval.ks=(1,3)",
    )
    c.methods = tuple(_short(method) for method in c.methods)


def _short(method: dict) -> dict:
    """Returns a row whose cell takes minutes."""
    short = ["train.num_steps=4", "evaluate.num_samples=2", "data.cranio_phantom.appearances=1"]
    if set(_SAMPLING) <= set(method["flags"]):
        short += ["sampling.num_steps=2", "data.cached_variants=1"]
    return method | dict(flags=(*method["flags"], *short), seeds=_FIRST)


def _method(
    name: str, config: str, *flags: tuple[str, ...], seeds: tuple[int, ...] | None = None
) -> dict:
    """Returns a row; one without seeds has those of the study."""
    method = dict(name=name, config=config, flags=sum(flags, ()))
    return method if seeds is None else method | dict(seeds=seeds)
