"""CLIP's tokenizer, in a pipeline's folder or in one of its own."""

import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable
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
    try:
        return _clip_tokenizer().from_pretrained(folder)
    except Exception as error:  # the libraries raise many kinds of errors
        reason = [*str(error).splitlines(), type(error).__name__][0]
        raise InputError(f"{folder}: the tokenizer can't be read ({reason})") from None


def _clip_tokenizer() -> Any:
    """Returns the class of transformers, which is kept from advising torch: it needs none here."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer  # importing it takes a second

    return CLIPTokenizer


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
    if (highest := max(tokenizer.get_vocab().values())) >= words:
        raise InputError(
            f"pretrained.tokenizer={folder.name}: it has {highest + 1} words, the text encoder "
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


def learn_tokenizer(words: Iterable[str], folder: pathlib.Path, length: int) -> int:
    """Writes CLIP's tokenizer with a small vocabulary, in which each of `words` is one token.

    Other words are spelled with the tokens of their parts, down to bytes, as CLIP does.

    Args:
      words: lower case, without spaces.
      folder: for vocab.json, merges.txt and the settings.
      length: the most tokens that the text encoder takes.

    Returns the number of tokens. Raises InputError if the folder exists.
    """
    if folder.exists():
        raise InputError(f"{folder} exists; remove it, or name another folder")
    import tokenizers

    # Learn which bytes to merge; merging goes on until each word is whole.
    splitter = tokenizers.pre_tokenizers
    alphabet = sorted(splitter.ByteLevel.alphabet())
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = splitter.Sequence(
        [splitter.Whitespace(), splitter.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(sorted(set(words)), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]

    # Write it as CLIP's own vocabulary is laid out.
    marks = ["<|startoftext|>", "<|endoftext|>"]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges), *marks]
    folder.mkdir(parents=True)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = _clip_tokenizer().from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)
