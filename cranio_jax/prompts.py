"""Biometrics to text, and text to token ids."""

from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
import tokenizers

from cranio_jax.errors import InputError
from cranio_jax.pretrained import open_pipeline

VIEWS = ("frontal", "lateral")
SEXES = ("female", "male")
# What the packaged tokenizer knows: enough for the demo's template, and small enough to learn from scratch.
WORDS = (
    ("<pad>", "<start>", "<end>", "<unknown>", ",", "-", "a", "an", "of", "the", "with", "at", "and", "in", "photo", "portrait")
    + ("face", "head", "person", "man", "woman", "male", "female", "view", "frontal", "lateral", "year", "years", "old", "aged")
    + ("weight", "bmi", "percent", "less", "usual", "more", "below", "above", "change", "skull", "x", "ray", "none")
    + tuple(str(n) for n in range(121))
)


def check_profile(view: str, sex: str, age: float, bmi_change: float) -> None:
    """Raises InputError where a biometric value can't be meant."""
    if view not in VIEWS:
        raise InputError(f"view={view!r} is unknown; expected {' or '.join(VIEWS)}")
    if sex not in SEXES:
        raise InputError(f"sex={sex!r} is unknown; expected {' or '.join(SEXES)}")
    if not 0 <= age <= 120:
        raise InputError(f"age={age:g} is outside 0 to 120 years")
    if not -60 <= bmi_change <= 200:
        raise InputError(f"bmi_change={bmi_change:g} is outside -60 to 200 percent")


def make_prompt(template: str, view: str, sex: str, age: float, bmi_change: float, known_ages: Sequence[float] = ()) -> str:
    """Fills a template with a face's biometrics.

    Args:
      template: may name {view}, {sex}, {noun}, {age} and {bmi}.
      view: of the face, one of VIEWS.
      sex: one of SEXES.
      age: years.
      bmi_change: percent of the person's own body mass index.
      known_ages: if given, the nearest of these stands for the age (for a text encoder trained from scratch,
        which has no idea of the ages between).
    """
    check_profile(view, sex, age, bmi_change)
    if known_ages:
        age = min(known_ages, key=lambda known: abs(known - age))
    amount = "usual weight" if round(bmi_change) == 0 else f"{abs(round(bmi_change))} percent {'more' if bmi_change > 0 else 'less'} weight"
    noun = {"female": "woman", "male": "man"}[sex]
    try:
        return template.format(view=view, sex=sex, noun=noun, age=round(age), bmi=amount)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"prompt.template={template!r} names a field other than view, sex, noun, age, bmi ({error})") from None


def word_tokenizer(length: int) -> Callable[[Sequence[str]], np.ndarray]:
    """A tokenizer over WORDS: `texts -> (len(texts), length)` int32."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unknown>"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", WORDS.index("<start>")), ("<end>", WORDS.index("<end>"))]
    )
    tokenizer.enable_padding(length=length, pad_id=WORDS.index("<pad>"), pad_token="<pad>")
    tokenizer.enable_truncation(length)
    return lambda texts: np.array([e.ids for e in tokenizer.encode_batch(list(texts))], np.int32)


def make_tokenizer(config: ml_collections.ConfigDict) -> Callable[[Sequence[str]], np.ndarray]:
    """`config.prompt`'s tokenizer, 'words' (packaged) or 'pretrained' (the checkpoint's): `texts -> (len(texts), length)` int32."""
    name, length = config.prompt.tokenizer, config.prompt.length
    if name == "words":
        return word_tokenizer(length)
    if name != "pretrained" or not config.pretrained.model:
        raise InputError(f"prompt.tokenizer={name!r}: expected 'words', or 'pretrained' with pretrained.model set")
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(open_pipeline(config.pretrained).folders["tokenizer"])
    options = dict(padding="max_length", max_length=length, truncation=True, return_tensors="np")
    return lambda texts: loaded(list(texts), **options)["input_ids"].astype(np.int32)
