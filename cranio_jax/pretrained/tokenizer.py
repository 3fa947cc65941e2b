"""CLIP's tokenizer, in a pipeline's folder or in one of its own."""

import functools
import json
import pathlib
import tempfile
from typing import Any

from cranio_jax.errors import InputError

# The source of Stable Diffusion's vocabulary, and the files of a tokenizer.
CLIP = "openai/clip-vit-large-patch14"
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def check_tokenizer(folder: pathlib.Path) -> None:
    """Raises InputError if a folder doesn't hold CLIP's tokenizer."""
    published = (("tokenizer.json",), ("vocab.json", "merges.txt"))
    if not any(all((folder / name).is_file() for name in names) for names in published):
        raise InputError(
            f"{folder} holds no vocabulary; expected vocab.json and merges.txt, or tokenizer.json"
        )
    try:
        kind = json.loads((folder / "tokenizer_config.json").read_text()).get("tokenizer_class")
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: tokenizer_config.json can't be read ({error})") from None
    if kind not in (None, "CLIPTokenizer", "CLIPTokenizerFast"):
        raise InputError(f"{folder} holds a {kind}; expected CLIP's tokenizer")


def open_tokenizer(folder: pathlib.Path) -> Any:
    """Returns CLIP's tokenizer as transformers reads it from a folder.

    The folder holds tokenizer.json, or vocab.json and merges.txt as the first pipelines do; other
    files are optional. Raises InputError if they are missing or can't be read.
    """
    check_tokenizer(folder)
    # AutoTokenizer needs a file that names the class, and CLIP's special tokens beside it.
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # the libraries raise many kinds of errors
        reason = [*str(error).splitlines(), type(error).__name__][0]
        raise InputError(f"{folder}: the tokenizer can't be read ({reason})") from None


@functools.cache
def fitted_tokenizer(folder: pathlib.Path, words: int, length: int, pad: str) -> pathlib.Path:
    """Returns a folder with a tokenizer's files and no others, made to fit a text encoder.

    The folder lives as long as the process.

    Args:
      folder: with CLIP's vocabulary.
      words: how many the text encoder knows.
      length: the most tokens that it takes.
      pad: what pads short prompts: 'end' for the end mark, 'first' for the first word,
        'own' for the token that its files name.

    Raises:
      InputError: the tokenizer has more words than the text encoder, or can't be read.
    """
    tokenizer = open_tokenizer(folder)
    if len(tokenizer) > words:
        raise InputError(
            f"pretrained.tokenizer={folder.name}: it has {len(tokenizer)} words, the text encoder "
            f"knows {words}. Name the tokenizer that belongs to the model."
        )
    if pad != "own":
        first = tokenizer.convert_ids_to_tokens(0)
        tokenizer.pad_token = first if pad == "first" else tokenizer.eos_token
    tokenizer.model_max_length = length
    fitted = pathlib.Path(tempfile.mkdtemp(dir=_scratch().name))
    tokenizer.save_pretrained(fitted)
    return fitted


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    """Returns a folder that is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="cranio_jax_")
