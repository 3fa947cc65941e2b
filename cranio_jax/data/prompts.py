"""Biometrics to text, and text to token ids."""

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import ml_collections
import numpy as np
import tokenizers
from jaxtyping import Float, Int

from cranio_jax.errors import InputError
from cranio_jax.pretrained import open_pipeline, open_tokenizer
from data_builders.conditions import AGES, BMI_CHANGES, SEXES, VIEWS

Encode = Callable[[list[str], bool], list[list[int]]]

CLIP_LENGTH = 77

# The packaged tokenizer's vocabulary: enough for the demo's template, and small enough to learn
# from scratch.
WORDS = (
    *("<pad>", "<start>", "<end>", "<unknown>"),
    *(",", "-", "a", "an", "of", "the", "with", "at", "and", "in"),
    *("photo", "portrait", "face", "head", "person", "man", "woman", "male", "female"),
    *("view", "frontal", "lateral", "year", "years", "old", "aged", "weight", "bmi"),
    *("percent", "less", "usual", "more", "below", "above", "change", "skull", "x", "ray", "none"),
    *(str(n) for n in range(201)),
)

# Two profiles that differ in one attribute alone.
_CONTRASTS = {
    "view": (("frontal", "female", 45, 0), ("lateral", "female", 45, 0)),
    "sex": (("frontal", "female", 45, 0), ("frontal", "male", 45, 0)),
    "age": (("frontal", "female", 0, 0), ("frontal", "female", 120, 0)),
    "bmi": (("frontal", "female", 45, -10), ("frontal", "female", 45, 10)),
}


def check_profile(view: str, sex: str, age: float, bmi_change: float) -> None:
    """Raises InputError if a biometric value is impossible."""
    if view not in VIEWS:
        raise InputError(f"view={view!r} is unknown; expected {' or '.join(VIEWS)}")
    if sex not in SEXES:
        raise InputError(f"sex={sex!r} is unknown; expected {' or '.join(SEXES)}")
    if not AGES[0] <= age <= AGES[1]:
        raise InputError(f"age={age:g} is outside 0 to 120 years")
    if not BMI_CHANGES[0] <= bmi_change <= BMI_CHANGES[1]:
        raise InputError(f"bmi_change={bmi_change:g} is outside -60 to 200 percent")


PROFILE = 4  # numbers of a profile


def profile_numbers(view: str, sex: str, age: float, bmi_change: float) -> Float[np.ndarray, "4"]:
    """Returns view, sex, age and change of BMI as numbers, for networks that read no prompt.

    View and sex are 1 or -1. Age is counted from 45 in units of 20 years, the change of BMI in
    units of 10 percent, so that most are between -1 and 1.
    """
    signs = (1.0 if view == "frontal" else -1.0, 1.0 if sex == "female" else -1.0)
    return np.array([*signs, (age - 45.0) / 20.0, bmi_change / 10.0], np.float32)


def make_prompt(
    template: str,
    view: str,
    sex: str,
    age: float,
    bmi_change: float,
    known_ages: Sequence[float] = (),
) -> str:
    """Fills a template with a face's biometrics.

    Args:
      template: may name {view}, {sex}, {noun}, {age} and {bmi}.
      view: of the face, one of VIEWS.
      sex: one of SEXES.
      age: years.
      bmi_change: percent of the person's own body mass index.
      known_ages: if given, the nearest of these stands for the age: a text encoder that is
        trained from scratch can't interpolate between ages.
    """
    check_profile(view, sex, age, bmi_change)
    if known_ages:
        age = min(known_ages, key=lambda known: abs(known - age))
    amount = (
        "usual weight"
        if round(bmi_change) == 0
        else f"{abs(round(bmi_change))} percent {'more' if bmi_change > 0 else 'less'} weight"
    )
    noun = {"female": "woman", "male": "man"}[sex]
    try:
        return template.format(view=view, sex=sex, noun=noun, age=round(age), bmi=amount)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"prompt.template={template!r} names a field other than view, sex, noun, age, bmi"
            f" ({error})"
        ) from None


class PromptTokenizer:
    """Turns texts into token ids `(len(texts), length)`, int32, without loss.

    A text that needs more than `length` tokens, or that holds a word which the tokenizer doesn't
    know, is refused with InputError: cut or unknown words would be lost silently.
    """

    def __init__(
        self,
        length: int,
        pad: int,
        encode: Encode,
        unknown: int | None,
        limit: int,
        vocabulary: dict[str, int],
    ):
        """Makes a tokenizer; its `size` is one more than the highest id.

        Args:
          length: tokens of a prompt, both marks included.
          pad: the id that fills up short prompts.
          encode: texts to lists of ids; with the marks if asked for.
          unknown: the id of what is not in the vocabulary; None if everything is.
          limit: the most tokens that the text encoder takes.
          vocabulary: the id of each token.
        """
        self.size = 1 + max(vocabulary.values())
        # How a tokenizer splits words is not in its vocabulary, so some split words are hashed too.
        words = " ".join(word for word in WORDS if not word.startswith("<"))
        identity = [pad, sorted(vocabulary.items()), encode([words], True)]
        self.sha256 = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self.length = length
        self._pad = pad
        self._encode = encode
        self._unknown = unknown
        self._limit = limit

    def __call__(
        self, texts: Sequence[str], field: str = "prompt.template"
    ) -> Int[np.ndarray, "texts length"]:
        """Returns the ids. `field` names the setting that the texts come from, for errors."""
        texts = list(texts)
        ids = np.full((len(texts), self.length), self._pad, np.int32)
        for row, text, tokens in zip(ids, texts, self._encode(texts, True), strict=True):
            self._check(text, tokens, field)
            row[: len(tokens)] = tokens
        return ids

    def _check(self, text: str, tokens: Sequence[int], field: str) -> None:
        if len(tokens) > self.length:
            cure = (
                f"Set prompt.length={len(tokens)}" if len(tokens) <= self._limit else "Shorten it"
            )
            raise InputError(
                f"{field}: {text!r} needs {len(tokens)} tokens, but prompt.length={self.length}. "
                f"{cure}, or use other words; the text encoder takes {self._limit}."
            )
        if self._unknown is not None and self._unknown in tokens[1:-1]:
            words = [
                w
                for w in re.findall(r"\w+|[^\w\s]", text)
                if self._unknown in self._encode([w], False)[0]
            ]
            raise InputError(
                f"{field}: the tokenizer doesn't know {', '.join(map(repr, words or [text]))}. Use"
                " other words, or a pretrained tokenizer."
            )


def word_tokenizer(length: int) -> PromptTokenizer:
    """Returns a tokenizer over WORDS."""
    unknown = WORDS.index("<unknown>")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unknown>")
    )
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    marks = [(mark, WORDS.index(mark)) for mark in ("<start>", "<end>")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=marks
    )

    def encode(texts: list[str], marks: bool) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=marks)]

    return PromptTokenizer(
        length, WORDS.index("<pad>"), encode, unknown, 1024, tokenizer.get_vocab()
    )


def pretrained_tokenizer(folder: pathlib.Path, length: int) -> PromptTokenizer:
    """Returns the tokenizer of a checkpoint's folder, in the layout of transformers.

    Raises InputError if it is not CLIP's, or can't be read.
    """
    loaded = open_tokenizer(folder)

    def encode(texts: list[str], marks: bool) -> list[list[int]]:
        return loaded(texts, add_special_tokens=marks, verbose=False)["input_ids"]

    # A folder that doesn't state the limit gets transformers' "infinite".
    limit = min(loaded.model_max_length, CLIP_LENGTH)
    return PromptTokenizer(
        length, loaded.pad_token_id, encode, loaded.unk_token_id, limit, loaded.get_vocab()
    )


def make_tokenizer(config: ml_collections.ConfigDict) -> PromptTokenizer:
    """Returns `config.prompt`'s tokenizer, after checking the template.

    'words' is packaged, 'pretrained' is the checkpoint's. Raises InputError where prompts of the
    template would be cut, hold unknown words, or have the same ids for different profiles.
    Attributes that the template leaves out on purpose are named in `config.prompt.omits`.
    """
    name, length = config.prompt.tokenizer, config.prompt.length
    folder = None
    if name == "pretrained" and (config.pretrained.model or config.pretrained.tokenizer):
        folder = open_pipeline(config.pretrained).folders["tokenizer"]
    elif name != "words":
        raise InputError(
            f"prompt.tokenizer={name!r}: expected 'words', or 'pretrained' with"
            " pretrained.model or pretrained.tokenizer set"
        )
    p = config.prompt
    if foreign := set(p.omits) - set(_CONTRASTS):
        expected = ", ".join(_CONTRASTS)
        raise InputError(f"prompt.omits: {min(foreign)!r} is unknown. Use some of {expected}.")
    return _checked(folder, length, p.template, tuple(p.known_ages), tuple(p.omits))


@functools.lru_cache(maxsize=8)
def _checked(
    folder: pathlib.Path | None,
    length: int,
    template: str,
    known_ages: tuple[float, ...],
    omits: tuple[str, ...],
) -> PromptTokenizer:
    tokenizer = pretrained_tokenizer(folder, length) if folder else word_tokenizer(length)
    # Each attribute on its own changes the prompt, unless it is left out on purpose.
    for attribute, (one, other) in _CONTRASTS.items():
        alike = make_prompt(template, *one, known_ages) == make_prompt(template, *other, known_ages)
        if alike and attribute not in omits:
            raise InputError(
                f"prompt.template={template!r}: faces that differ in {attribute} alone get the same"
                f" prompt. Add {{{attribute}}}, or name it in prompt.omits to leave it out."
            )
        if attribute in omits and not alike:
            raise InputError(
                f"prompt.omits={attribute}: prompt.template uses it. Remove it from one."
            )
    # Different prompts have different ids.
    texts = sorted({make_prompt(template, *profile, known_ages) for profile in _profiles()})
    first: dict[bytes, str] = {}
    for text, ids in zip(texts, tokenizer(texts), strict=True):
        same_ids = first.setdefault(ids.tobytes(), text)
        if same_ids != text:
            raise InputError(
                f"prompt.template: {same_ids!r} and {text!r} have the same token ids. Change it so"
                " that the tokenizer tells them apart."
            )
    return tokenizer


def _profiles() -> Iterator[tuple[str, str, float, float]]:
    """Yields view, sex, age and BMI change: all ages with one change, all changes with one age."""
    pairs = [(age, -10) for age in range(121)] + [(45, change) for change in range(-60, 201)]
    yield from ((view, sex, *pair) for view in VIEWS for sex in SEXES for pair in pairs)
