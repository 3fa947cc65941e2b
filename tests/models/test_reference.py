"""The networks against the PyTorch classes whose checkpoints they load."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from cranio_jax import models, pretrained
from cranio_jax.models.functional import Network


def to_jax(model: nnx.Module, reference: torch.nn.Module) -> None:
    """Copies a reference's weights by the naming rule; fails if either side has unmatched keys."""
    keys = reference.state_dict()
    _graph, state = nnx.split(model, nnx.Param)
    flat = nnx.to_flat_state(state)
    values = []
    for path, param in flat:
        leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}[
            path[-1]
        ]
        value = keys.pop(".".join(map(str, (*path[:-1], leaf)))).float().numpy()
        if path[-1] == "kernel":
            value = (
                value.transpose(2, 3, 1, 0)
                if param.get_value().ndim == 4
                else value.T.reshape(param.get_value().shape)
            )
        assert value.shape == param.get_value().shape, path
        values.append((path, param.replace(jnp.asarray(value))))
    assert not keys, f"left over: {sorted(keys)}"
    nnx.update(model, nnx.from_flat_state(values))


def relative_error(got, wanted) -> float:
    return float(np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted))


def config_of(reference) -> dict:
    return {k: v for k, v in dict(reference.config).items() if not k.startswith("_")}


def randomise(reference: torch.nn.Module) -> torch.nn.Module:
    """Sets all weights to non-zero values, so that zero convolutions or biases hide no mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in reference.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            scale = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(scale + 0.1 * noise if p.ndim < 2 else noise / p[0].numel() ** 0.5)
    return reference.eval()


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def nhwc(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


SMALL = dict(
    block_out_channels=(16, 32), norm_num_groups=8, cross_attention_dim=12, layers_per_block=2
)
VARIANTS = {
    "sd15": dict(attention_head_dim=4, use_linear_projection=False),
    "sd21": dict(attention_head_dim=(2, 4), use_linear_projection=True),
}
DOWN = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))
UP = dict(up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [8, 7])
def test_unet_with_controlnet(variant, size):
    settings = SMALL | VARIANTS[variant] | DOWN
    unet_ref = randomise(diffusers.UNet2DConditionModel(**settings, **UP))
    control_ref = randomise(
        diffusers.ControlNetModel(**settings, conditioning_embedding_out_channels=(4, 8))
    )
    unet = models.UNet2DConditionModel(
        models.UNet2DConditionConfig.from_mapping(config_of(unet_ref)), rngs=nnx.Rngs(0)
    )
    control = models.ControlNetModel(
        models.ControlNetConfig.from_mapping(config_of(control_ref)), rngs=nnx.Rngs(0)
    )
    to_jax(unet, unet_ref)
    to_jax(control, control_ref)
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((2, size, size, 4), np.float32)
    context = rng.standard_normal((2, 5, 12), np.float32)
    picture = rng.random((2, 2 * size, 2 * size, 3), np.float32)
    steps = np.array([3.0, 951.0], np.float32)

    with torch.no_grad():
        down, middle = control_ref(
            nchw(sample),
            torch.from_numpy(steps),
            torch.from_numpy(context),
            controlnet_cond=nchw(picture),
            conditioning_scale=0.7,
            return_dict=False,
        )
        wanted = unet_ref(
            nchw(sample),
            torch.from_numpy(steps),
            torch.from_numpy(context),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        plain = unet_ref(nchw(sample), torch.from_numpy(steps), torch.from_numpy(context)).sample
    sample, steps, context, picture = map(jnp.asarray, (sample, steps, context, picture))
    got_down, got_middle = control(sample, steps, context, picture, 0.7)
    assert len(got_down) == len(down)
    for ours, theirs in zip(got_down, down, strict=True):
        assert relative_error(ours, nhwc(theirs)) < 1e-4
    assert relative_error(got_middle, nhwc(middle)) < 1e-4
    assert relative_error(unet(sample, steps, context, got_down, got_middle), nhwc(wanted)) < 1e-4
    assert relative_error(unet(sample, steps, context), nhwc(plain)) < 1e-4


def test_autoencoder():
    reference = randomise(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )
    )  # fmt: skip
    model = models.AutoencoderKL(
        models.AutoencoderKLConfig.from_mapping(config_of(reference)), rngs=nnx.Rngs(0)
    )
    to_jax(model, reference)
    picture = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    with torch.no_grad():
        latent = reference.encode(nchw(picture)).latent_dist
        decoded = reference.decode(latent.mean).sample
    mean, log_variance = model.moments(picture)
    assert relative_error(mean, nhwc(latent.mean)) < 1e-4
    assert relative_error(log_variance, nhwc(latent.logvar)) < 1e-4
    assert relative_error(model.decode(model.encode(picture)), nhwc(decoded)) < 1e-4
    drawn = model.encode(picture, jax.random.key(0)) / model.config.scaling_factor
    spread = (drawn - mean) / jnp.exp(0.5 * log_variance)
    assert 0.8 < float(spread.std()) < 1.2


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_text_encoder(act):
    settings = dict(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=9,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=59,
        pad_token_id=1,
    )
    reference = randomise(transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings)))
    model = models.CLIPTextModel(
        models.CLIPTextConfig.from_mapping(reference.config.to_dict()), rngs=nnx.Rngs(0)
    )
    to_jax(model, reference)
    ids = np.random.default_rng(0).integers(0, 60, (2, 9))
    with torch.no_grad():
        wanted = reference(torch.from_numpy(ids)).last_hidden_state.numpy()
    assert relative_error(model(jnp.asarray(ids)), wanted) < 1e-4


def test_unimplemented_field_is_named():
    with pytest.raises(ValueError, match="addition_embed_type='text_time'"):
        models.UNet2DConditionConfig.from_mapping({"addition_embed_type": "text_time"})
    with pytest.raises(ValueError, match="unknown field 'sharpness'"):
        models.UNet2DConditionConfig.from_mapping({"sharpness": 1})


def test_new_controlnet_has_no_effect():
    config = models.ControlNetConfig(
        **SMALL, **DOWN, **UP, attention_head_dim=4, conditioning_embedding_out_channels=(4, 8)
    )
    control = models.ControlNetModel(config, rngs=nnx.Rngs(0))
    down, middle = control(
        jnp.ones((1, 8, 8, 4)), jnp.zeros(1), jnp.ones((1, 3, 12)), jnp.ones((1, 16, 16, 3))
    )
    assert all(float(jnp.abs(r).max()) == 0.0 for r in [*down, middle])


def test_tiny_decoder(tmp_path):
    reference = randomise(
        diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(2, 1),
        )
    )
    reference.save_pretrained(tmp_path / "taesd")
    config = models.TinyDecoderConfig.from_mapping(config_of(reference))
    network = Network(lambda rngs: models.TinyDecoder(config, rngs=rngs))
    shapes, here = network.shapes(), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pretrained.open_weights(tmp_path / "taesd") as tensors:
        own = {key: t for key, t in tensors.items() if key.startswith("decoder.")}
        params = pretrained.load(shapes, own, dict.fromkeys(shapes, here), "taesd")
    latents = jnp.asarray(2 * np.random.default_rng(0).standard_normal((2, 4, 4, 4)), jnp.float32)
    with torch.no_grad():
        wanted = reference.decode(nchw(latents)).sample
    assert relative_error(network.bind(params).decode(latents), nhwc(wanted)) < 1e-4
