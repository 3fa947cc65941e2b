"""A configuration that a test wrote to a file: --config=tests/whole_config.py:FILE."""

import json
import pathlib

import ml_collections

from configs import demo


def get_config(file: str) -> ml_collections.ConfigDict:
    config = demo.get_config("smoke")
    config.update(json.loads(pathlib.Path(file).read_text()))
    return config
