"""Small pipelines with random weights, written by diffusers itself."""

import json

import diffusers
import pytest
import torch
import transformers

WIDTH = 32
# Differences between the families: heads by count or by size, convolutions or linear layers, gelu,
# velocity.
FAMILIES = {
    "1.5": (dict(attention_head_dim=8), "quick_gelu", dict(set_alpha_to_one=False)),
    "2.1-base": (
        dict(attention_head_dim=(2, 4), use_linear_projection=True),
        "gelu",
        dict(set_alpha_to_one=False),
    ),
    "2.1-v": (
        dict(attention_head_dim=(2, 4), use_linear_projection=True),
        "gelu",
        dict(prediction_type="v_prediction"),
    ),
}


def randomise(module):
    """Sets all weights to non-zero values, so that zero convolutions or biases hide no mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(centre + 0.1 * noise if p.ndim < 2 else noise / p[0].numel() ** 0.5)
    return module.eval()


def tokenizer(folder):
    """Returns a CLIP tokenizer over single letters and one merge."""
    folder.mkdir(parents=True)
    letters = [chr(c) for c in range(33, 127)]
    words = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "an",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na n\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )


def write_pipeline(folder, family, control=True):
    """Saves a pipeline of `family` to `folder` as diffusers does; returns it."""
    attention, act, schedule = FAMILIES[family]
    shared = dict(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        **attention,
    )
    words = tokenizer(folder.with_name(folder.name + "_words"))
    end = words.eos_token_id
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=act,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    parts = dict(
        unet=randomise(
            diffusers.UNet2DConditionModel(
                **shared, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
            )
        ),
        vae=randomise(
            diffusers.AutoencoderKL(
                block_out_channels=(8, 16),
                layers_per_block=1,
                norm_num_groups=4,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
            )
        ),
        text_encoder=randomise(transformers.CLIPTextModel(text)),
        tokenizer=words,
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            clip_sample=False,
            **schedule,
        ),
        safety_checker=None,
        feature_extractor=None,
    )
    if control:
        parts["controlnet"] = randomise(
            diffusers.ControlNetModel(**shared, conditioning_embedding_out_channels=(4, 8))
        )
        pipeline = diffusers.StableDiffusionControlNetPipeline(
            **parts, requires_safety_checker=False
        )
    else:
        pipeline = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """Returns a function `family -> (folder, diffusers pipeline)`; each is created once."""
    made = {}

    def get(family="1.5"):
        if family not in made:
            folder = tmp_path_factory.mktemp("pipelines") / f"sd-{family}"
            made[family] = folder, write_pipeline(folder, family)
        return made[family]

    return get


@pytest.fixture
def settings():
    """Returns a function `folder -> ConfigDict` that configures the small pipelines."""
    from configs import common

    def make(folder, **changes):
        c = common.get_config()
        c.pretrained.model = str(folder)
        c.data.settings.size = 16
        c.prompt.update(tokenizer="pretrained", length=77)
        c.method.update(
            name="cranio_diff",
            trained=("controlnet",),
            codec="vae",
            prompt_dropout=0.0,
            timesteps="uniform",
            outline_weight=0.0,
            true_outline=0.0,
            loss_weight="none",
            min_snr_gamma=5.0,
        )
        c.method.controlnet = dict(conditioning_embedding_out_channels=(4, 8))
        c.sampling.spacing = "leading"
        c.update(changes)
        return c

    return make
