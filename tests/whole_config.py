"""A configuration that a test wrote to a file: --config=tests/whole_config.py:FILE."""

import importlib
import json
import pathlib

import ml_collections


def get_config(file: str) -> ml_collections.ConfigDict:
    """Returns the file's settings, with the types of the method's own configuration."""
    settings = json.loads(pathlib.Path(file).read_text())
    name = settings["method"]["name"].replace("cranio_diff", "from_scratch")
    config = importlib.import_module(f"configs.{name}").get_config("smoke")
    config.update(settings)
    return config
