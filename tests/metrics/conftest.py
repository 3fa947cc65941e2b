"""torch-fidelity as the reference, without torchvision.

It imports torchvision, but the functions that the tests use never call it.
"""

import importlib
import sys
import types

import pytest


@pytest.fixture(scope="session")
def fidelity():
    """The package torch_fidelity."""
    names = (
        "torchvision",
        "torchvision.datasets",
        "torchvision.models",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    )

    class Stub(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: Stub(name) for name in names})
    try:
        return importlib.import_module("torch_fidelity")
    finally:
        sys.modules.update(before)
