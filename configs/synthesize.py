"""Faces at other ages and weights, from a list of photographs: the paper's nine of each person.

python -m cranio_jax.main --config=configs/synthesize.py --workdir=DIR \
    --config.data.skull_face.manifest=LIST --config.pretrained.model=FOLDER_OR_HUB_ID \
    --config.synthesize.embedder_file=FILE

FILE is a face-recognition network. It writes the pictures into a folder beside LIST, and a list of
photographs and pictures that all other jobs read.

Variant 'procedural' is for launch/synthesis.py, which compares such faces with true ones.
"""

import ml_collections

from configs import common, text_to_image


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns our own settings."""
    c = text_to_image.get_config("published")
    c.name = "synthesize"
    c.job = "synthesize"
    c.data.builder = "skull_face"
    c.data.skull_face.align = True
    # Guidance strengthens the prompt and loses the person.
    c.sampling.update(sampler="ddim", num_steps=20, guidance_scale=1.0)
    common.apply_variant(c, variant, {"procedural": procedural})
    return c


def procedural(c: ml_collections.ConfigDict) -> None:
    """Sets the demo's people, whom the networks that ship have not seen, with all nine faces."""
    c.data.builder = "cranio_phantom"
    c.pretrained.model = "shipped:phantom_sd"
    c.prompt.length = 32
    c.synthesize.embedder_file = "shipped:phantom_judge.safetensors"
