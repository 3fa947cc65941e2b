"""The paper's comparison at its scale: your cohort of 120 subjects, Stable Diffusion, 512 pixels.

python launch/study.py --study=configs/study_paper.py --workdir=DIR --weights=WEIGHTS \
    --config.data.skull_face.manifest=LIST --config.pretrained.model=FOLDER_OR_HUB_ID

WEIGHTS holds, under these names: vgg16.pth and vgg_heads.pth (torchvision, lpips), loss_embedder.pth and
judge_embedder.pth (two different ArcFace networks), inception.pth (the FID's). Cost, counted by launch/flops.py and not measured, of a
run: Cranio-Diff 14.4 EFLOP, without the decoded terms 4, the prompt alone 4, CycleGAN 2.8, CUT 2.1, Pix2Pix 0.1. Three seeds are
82 EFLOP, five days of one H200 at 20 % of its peak, or an array of 21 jobs (--cell=K), the longest of twenty hours.
"""

import ml_collections

from configs import study_phantom


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The methods of the small study, each with the settings of its own recipe."""
    if variant:
        raise ValueError(f"configs/study_paper.py has no variant {variant!r}")
    c = study_phantom.get_config()
    c.name = "study_paper"
    c.seeds, c.headline, c.baselines = (0, 1, 2), "cranio_diff", ("pix2pix", "cyclegan", "cut")
    c.helpers = ()
    c.flags = (
        "data.builder=skull_face",
        "data.settings.size=512",
        "data.settings.pairing=all_views",
        "compute_dtype=bfloat16",
    )
    files = ("inception.pth", "vgg16.pth", "vgg_heads.pth", "judge_embedder.pth")
    weights = ",".join("{weights}/" + file for file in files)
    c.method_flags = (
        f"evaluate.weights={weights}",
        "evaluate.num_samples=1",
        "evaluate.batch_size=16",
    )
    losses = (
        "trunk_file={weights}/vgg16.pth",
        "heads_file={weights}/vgg_heads.pth",
        "embedder_file={weights}/loss_embedder.pth",
    )
    plain = ("method.losses.lpips=0.0", "method.losses.identity=0.0")
    c.methods = (
        dict(
            name="cranio_diff",
            config="configs/cranio_diff.py",
            flags=tuple(f"method.losses.{file}" for file in losses),
        ),
        dict(name="cranio_diff without identity", config="configs/cranio_diff.py", flags=plain),
        dict(
            name="prompt alone",
            config="configs/cranio_diff.py",
            flags=(*plain, "method.trained=('unet',)"),
        ),
        *(
            dict(name=name, config=f"configs/{name}.py", flags=())
            for name in ("pix2pix", "cyclegan", "cut", "siamese")
        ),
    )
    return c
