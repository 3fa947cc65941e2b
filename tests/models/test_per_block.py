"""Lists in config.json, an entry for each block, against diffusers."""

import diffusers
import jax
import numpy as np
import pytest
import torch

from cranio_jax import models
from cranio_jax.models.functional import Network
from cranio_jax.pretrained.names import from_torch, torch_key
from tests.models.test_reference import config_of, nchw, nhwc, randomise, relative_error

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
SMALL = dict(block_out_channels=(8, 16), norm_num_groups=8, attention_head_dim=4)
SMALL |= dict(down_block_types=(CROSS, CROSS))
UP = dict(up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))
LISTS = {
    "layers": dict(layers_per_block=[1, 2], attention_head_dim=[1, 2]),
    "all": dict(
        layers_per_block=[2, 1],
        attention_head_dim=[2, 4],
        transformer_layers_per_block=[1, 2],
        cross_attention_dim=[12, 12],
        only_cross_attention=[False, False],
        mid_block_only_cross_attention=False,
    ),
}


def ours(make, reference):
    """Our network with the reference's weights, of which none may be left over, as a function."""
    network, state = Network(make), reference.state_dict()
    assert {torch_key(path) for path in network.shapes()} == state.keys()
    values = {path: state[torch_key(path)].numpy() for path in network.shapes()}
    params = {path: np.array(from_torch(path, value)) for path, value in values.items()}
    return lambda *given: jax.jit(lambda p, *x: network.bind(p)(*x))(params, *given)


def inputs():
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((2, 8, 8, 4), np.float32)
    context = rng.standard_normal((2, 5, 12), np.float32)
    picture = rng.random((2, 16, 16, 1), np.float32)
    return sample, np.array([3.0, 951.0], np.float32), context, picture


@pytest.mark.parametrize("case", LISTS)
def test_unet(case):
    settings = dict(layers_per_block=1, cross_attention_dim=12) | SMALL | LISTS[case]
    reference = randomise(diffusers.UNet2DConditionModel(**settings, **UP))
    config = models.UNet2DConditionConfig.from_mapping(config_of(reference) | LISTS[case])
    run = ours(lambda rngs: models.UNet2DConditionModel(config, rngs=rngs), reference)
    sample, steps, context, _ = inputs()
    with torch.no_grad():
        wanted = reference(nchw(sample), torch.from_numpy(steps), torch.from_numpy(context)).sample
    assert relative_error(run(sample, steps, context), nhwc(wanted)) < 1e-4


@pytest.mark.parametrize("channels", [1, 3])
def test_controlnet(channels):
    lists = dict(attention_head_dim=[2, 4], transformer_layers_per_block=[1, 2])
    lists |= dict(only_cross_attention=[False, False], conditioning_channels=channels)
    settings = dict(layers_per_block=1, cross_attention_dim=12) | SMALL | lists
    widths = dict(conditioning_embedding_out_channels=(4, 8))
    reference = randomise(diffusers.ControlNetModel(**settings, **widths))
    config = models.ControlNetConfig.from_mapping(config_of(reference))
    run = ours(lambda rngs: models.ControlNetModel(config, rngs=rngs), reference)
    sample, steps, context, picture = inputs()
    arguments = nchw(sample), torch.from_numpy(steps), torch.from_numpy(context)
    with torch.no_grad():
        grey = nchw(picture).repeat(1, channels, 1, 1)
        down, middle = reference(*arguments, controlnet_cond=grey, return_dict=False)
    # A grey picture is repeated to the network's channels.
    for given in (picture, np.repeat(picture, channels, -1))[: channels - 1 or 1]:
        got_down, got_middle = run(sample, steps, context, given)
        for got, theirs in zip([*got_down, got_middle], [*down, middle], strict=True):
            assert relative_error(got, nhwc(theirs)) < 1e-4


def test_equal_entries_are_one_value():
    """A U-Net that writes lists agrees with a ControlNet that writes numbers."""
    written = dict(layers_per_block=[2, 2], cross_attention_dim=[12, 12])
    written |= dict(num_attention_heads=None, only_cross_attention=[False] * 2)
    listed = models.UNet2DConditionConfig.from_mapping(SMALL | UP | written)
    single = dict(layers_per_block=2, cross_attention_dim=12)
    assert listed == models.UNet2DConditionConfig.from_mapping(SMALL | UP | single)
    # Heads by either name.
    for name in ("num_attention_heads", "attention_head_dim"):
        config = models.UNet2DConditionConfig.from_mapping(SMALL | UP | {name: [2, 4]})
        assert [a.heads for a in config.attentions] == [2, 4]
    # The first block has no attention and no use for its entry.
    plain = dict(down_block_types=(PLAIN, CROSS), cross_attention_dim=[99, 12])
    plain |= dict(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    assert models.UNet2DConditionConfig.from_mapping(SMALL | plain).cross_attention_dim == 12


WRONG = {
    "short": (
        dict(layers_per_block=[1]),
        "layers_per_block has 1 entries, block_out_channels has 2",
    ),
    "heads": (dict(attention_head_dim=[1, 2, 4, 4]), "attention_head_dim has 4 entries"),
    "nested": (dict(transformer_layers_per_block=[[1, 2], [1, 1]]), "a list within the list"),
    "one true": (dict(only_cross_attention=[False, True]), "only_cross_attention="),
    "all true": (dict(only_cross_attention=True), "only_cross_attention=True is not implemented"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_implemented_is_named(case):
    fields, message = WRONG[case]
    for cls in (models.UNet2DConditionConfig, models.ControlNetConfig):
        with pytest.raises(ValueError, match=message):
            cls.from_mapping(SMALL | UP | fields)


def test_a_conditioning_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="conditioning_channels=4 is not implemented"):
        models.ControlNetConfig.from_mapping(SMALL | dict(conditioning_channels=4))
