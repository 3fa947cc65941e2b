"""The interface that all methods share, and how they are found by name."""

import importlib

import pytest

from cranio_jax.errors import InputError
from cranio_jax.methods import Method, check_method, method_names

KINDS = {
    "arcface": "embedder",
    "autoencoder": "generator",
    "cranio_diff": "generator",
    "cut": "generator",
    "cyclegan": "generator",
    "outline": "outline",
    "pix2pix": "generator",
    "siamese": "matcher",
    "text_to_image": "generator",
}
WRITE_PIPELINES = {"autoencoder", "cranio_diff", "text_to_image"}


def smoke_config(name):
    """Returns a small configuration of a method."""
    module = importlib.import_module(f"configs.{'demo' if name == 'cranio_diff' else name}")
    return module.get_config("smoke")


def test_methods_are_found_by_their_modules():
    assert method_names() == sorted(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_method_has_the_whole_interface(name):
    method = check_method(smoke_config(name))
    assert isinstance(method, Method)
    assert method.kind == KINDS[name]
    assert hasattr(method, "generate") == (method.kind == "generator")
    assert hasattr(method, "embed") == (method.kind in ("embedder", "matcher"))
    assert hasattr(method, "find") == method.needs_masks == (method.kind == "outline")
    assert method.writes_pipeline == (name in WRITE_PIPELINES)
    assert method.supports_remat == (name in ("cranio_diff", "text_to_image"))
    assert method.reads_xrays == (name not in ("autoencoder", "text_to_image"))


@pytest.mark.parametrize("name", ["arcface", "autoencoder", "cranio_diff"])
def test_networks_are_found_once(name):
    """A second method of the same settings has the first one's networks; others have their own."""
    config = smoke_config(name)
    first, second = check_method(config).networks, check_method(config).networks
    config.compute_dtype = "bfloat16"
    third = check_method(config).networks
    assert first
    for part, network in first.items():
        assert second[part] is network
        assert third[part] is not network


@pytest.mark.parametrize("name", ["base", "optimizer", "pix3pix", "cranio_diff.losses", ""])
def test_other_modules_are_no_methods(name):
    config = smoke_config("pix2pix")
    config.method.name = name
    with pytest.raises(InputError, match="there is no such method. Use one of arcface, autoenc"):
        check_method(config)
