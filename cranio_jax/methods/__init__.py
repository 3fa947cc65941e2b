"""The methods that are compared. Each is a module here, named as `config.method.name`."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

import ml_collections

from cranio_jax.data import Batch
from cranio_jax.errors import InputError
from cranio_jax.methods.base import Method

__all__ = ["Batch", "Method", "check_method", "make_method", "method_class", "method_names"]


def make_method(config: ml_collections.ConfigDict) -> Method:
    """Returns the method that `config.method.name` names.

    An embedder's size depends on the records, which are built if there are none. Raises InputError
    on impossible settings.
    """
    method = check_method(config)
    method.count_people()
    return method


def check_method(config: ml_collections.ConfigDict) -> Method:
    """Returns the method without reading the records, so that `init` can't be called yet.

    Raises InputError on impossible settings.
    """
    chosen = method_class(config)
    if config.train.remat and not chosen.supports_remat:
        raise InputError(
            f"train.remat=True: method.name={config.method.name!r} has no U-Net and ControlNet to "
            "compute again. Set train.remat=False."
        )
    return chosen(config)


def method_class(config: ml_collections.ConfigDict) -> type[Any]:
    """Returns the class that `config.method.name` names. Raises InputError if there is none."""
    name = config.method.name
    if name not in _modules() or not hasattr(_module(name), "METHOD"):
        names = ", ".join(method_names())
        raise InputError(f"method.name={name!r}: there is no such method. Use one of {names}.")
    return _module(name).METHOD


def method_names() -> list[str]:
    """Returns the names of all methods, sorted."""
    return [name for name in _modules() if hasattr(_module(name), "METHOD")]


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
