"""Faces at other ages and weights, from a list of photographs: the paper's nine of each person.

python -m cranio_jax.main --config=configs/synthesize.py --workdir=DIR \
    --config.data.skull_face.manifest=LIST --config.pretrained.model=FOLDER_OR_HUB_ID \
    --config.synthesize.embedder_file=FILE

FILE is a face-recognition network. It writes the pictures into a folder beside LIST, and a list of
photographs and pictures that all other jobs read.
"""

import ml_collections

from configs import text_to_image


def get_config() -> ml_collections.ConfigDict:
    """Returns our own settings."""
    c = text_to_image.get_config("published")
    c.name = "synthesize"
    c.job = "synthesize"
    c.data.builder = "skull_face"
    c.data.skull_face.align = True
    # Guidance strengthens the prompt and loses the person.
    c.sampling.update(sampler="ddim", num_steps=20, guidance_scale=1.0)
    return c
