"""The paper's comparison at its scale: 120 subjects of your own, Stable Diffusion, 512 pixels.

python launch/study.py --study=configs/study_paper.py --workdir=DIR --weights=WEIGHTS \
    --config.data.skull_face.manifest=LIST --config.pretrained.model=FOLDER_OR_HUB_ID

WEIGHTS is a folder with these files:

  vgg16.pth, vgg_heads.pth                  torchvision's VGG16, the lpips package's heads
  loss_embedder.pth, judge_embedder.pth     two different ArcFace networks
  inception.pth                             the Inception network of the FID

Cost of a run in EFLOP, counted by launch/flops.py and not measured:

  Cranio-Diff                               14.4
  Cranio-Diff without the decoded terms      4
  the prompt alone                           4
  CycleGAN                                   2.8
  CUT                                        2.1
  Pix2Pix                                    0.1

Three seeds take 82 EFLOP, or five days of one H200 at 20 % of its peak. As an array of 21 jobs
(--cell=K), the longest takes twenty hours.
"""

import ml_collections

from configs import common, study_phantom


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the methods of the small study, each with the settings of its own experiment."""
    common.check_variant("study_paper", variant, [])
    c = study_phantom.get_config()
    c.name = "study_paper"
    c.seeds = (0, 1, 2)
    c.headline = "cranio_diff"
    c.baselines = ("pix2pix", "cyclegan", "cut")
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
    decoded_terms = (
        "method.losses.trunk_file={weights}/vgg16.pth",
        "method.losses.heads_file={weights}/vgg_heads.pth",
        "method.losses.embedder_file={weights}/loss_embedder.pth",
    )
    no_decoded_terms = ("method.losses.lpips=0.0", "method.losses.identity=0.0")
    c.methods = (
        dict(name="cranio_diff", config="configs/cranio_diff.py", flags=decoded_terms),
        dict(
            name="cranio_diff without identity",
            config="configs/cranio_diff.py",
            flags=no_decoded_terms,
        ),
        dict(
            name="prompt alone",
            config="configs/cranio_diff.py",
            flags=(*no_decoded_terms, "method.trained=('unet',)"),
        ),
        *(
            dict(name=name, config=f"configs/{name}.py", flags=())
            for name in ("pix2pix", "cyclegan", "cut", "siamese")
        ),
    )
    return c
