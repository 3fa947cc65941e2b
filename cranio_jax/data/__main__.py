"""python -m cranio_jax.data tokenizer WORDS: learns CLIP's tokenizer for our prompts' words."""

import argparse
import pathlib
import sys

from cranio_jax.data.prompts import WORDS
from cranio_jax.errors import InputError
from cranio_jax.pretrained import learn_tokenizer


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; wrong input ends the program with a one-line message."""
    parser = argparse.ArgumentParser(
        prog="python -m cranio_jax.data",
        description="Learns a tokenizer, for text encoders that are trained from scratch.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="tokenizer")
    command = commands.add_parser("tokenizer", help="CLIP's tokenizer for the words of our prompts")
    command.add_argument("folder", type=pathlib.Path, help="the folder to write")
    command.add_argument(
        "--length", type=int, default=32, help="tokens that the text encoder takes"
    )
    options = parser.parse_args(arguments)
    # CLIP reads numbers digit by digit.
    words = [word for word in WORDS if word.isalpha()]
    try:
        count = learn_tokenizer(words, options.folder, options.length)
    except InputError as error:
        sys.exit(f"cranio_jax: {error}")
    print(f"{options.folder}: {count} tokens")


if __name__ == "__main__":
    main()
