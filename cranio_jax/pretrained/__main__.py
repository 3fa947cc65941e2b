"""python -m cranio_jax.pretrained convert FILE OUT.safetensors: converts published weights.

The weights are those of feature networks.
"""

import argparse
import pathlib
import sys

from cranio_jax.errors import InputError
from cranio_jax.pretrained.convert import convert


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; wrong input ends the program with a one-line message."""
    parser = argparse.ArgumentParser(
        prog="python -m cranio_jax.pretrained",
        description="Converts published weights of feature networks to safetensors.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="convert")
    command = commands.add_parser("convert", help="a published file to safetensors")
    command.add_argument(
        "file",
        type=pathlib.Path,
        help="a .pth of torchvision, lpips, insightface or the FID's Inception, "
        "an insightface .onnx, or safetensors",
    )
    command.add_argument("out", type=pathlib.Path, help="the safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        print(convert(options.file, options.out))
    except InputError as error:
        sys.exit(f"cranio_jax: {error}")


if __name__ == "__main__":
    main()
