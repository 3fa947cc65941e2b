"""The whole prompt reaches the network, or the run refuses to start."""

import json
import pathlib

import jax
import ml_collections
import numpy as np
import pytest
import transformers

from configs import common, demo, from_scratch, study_phantom
from cranio_jax.data.prompts import (
    make_prompt,
    make_tokenizer,
    pretrained_tokenizer,
    profile_numbers,
)
from cranio_jax.errors import InputError
from cranio_jax.methods import make_method

PROFILES = [
    (view, sex, age, change)
    for view in ("frontal", "lateral")
    for sex in ("female", "male")
    for age in (25, 45, 65)
    for change in (-10, 0, 10)
]


def prompt_settings(**changes):
    config = common.get_config()
    config.prompt.update(changes)
    return config


VARIANTS = ("", "smoke", "fine")  # of the study's recipe


def ids_of(config):
    """The token ids of the study's 36 profiles, as the run makes them."""
    p = config.prompt
    texts = [make_prompt(p.template, *profile, p.known_ages) for profile in PROFILES]
    return make_tokenizer(config)(texts)


@pytest.mark.parametrize(
    "config", [*(from_scratch.get_config(variant) for variant in VARIANTS), demo.get_config()]
)
def test_all_profiles_are_told_apart(config):
    """The token ids of all profiles differ.

    The study's prompts were once cut before the sign of the BMI.
    """
    ids = ids_of(config)
    assert len({tuple(row) for row in ids}) == len(PROFILES) == 36
    numbers = {tuple(profile_numbers(*profile)) for profile in PROFILES}
    assert len(numbers) == 36 and np.abs(list(numbers)).max() == 1.0
    assert "prompt." not in str(study_phantom.get_config().to_dict())  # no cell changes the prompt


def test_all_profiles_reach_the_network():
    """The text encoder returns a different output for each profile."""
    config = from_scratch.get_config("smoke")
    method = make_method(config)
    params = {"text_encoder": method.networks["text_encoder"].init(jax.random.key(0))}
    context = method._context(params, ids_of(config))
    flat = np.asarray(context).reshape(len(PROFILES), -1)
    apart = np.abs(flat[:, None] - flat[None]).max(-1) + np.eye(len(PROFILES))
    assert apart.min() > 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            dict(length=16),
            (
                r"prompt.template: 'portrait of a .*' needs 18 tokens, but prompt.length=16. Set"
                r" prompt.length=18"
            ),
        ),
        (dict(length=17), "needs 18 tokens"),
        (
            dict(
                template=(
                    "portrait of a {noun}, {view} view, aged {age}, with {bmi} and an old head of"
                    " years"
                )
            ),
            "needs 2. tokens",
        ),
        (
            dict(template="photograph of a {noun}, {age}, {bmi}, {view}"),
            "doesn't know 'photograph'. Use other words",
        ),
        (dict(template="{view} {noun} of {age} years; {bmi}"), "doesn't know ';'"),
        (dict(template="a {nose}"), "names a field other than"),
        (
            dict(template="{noun} {age} {view}"),
            r"faces that differ in bmi alone get the same prompt. Add {bmi}",
        ),
        (dict(template="{noun} {bmi} {view}"), "differ in age alone"),
        (dict(template="", length=2, omits=("view", "sex", "age")), "differ in bmi alone"),
        (dict(omits=("bmi",)), "prompt.omits=bmi: prompt.template uses it"),
        (
            dict(omits=("weight",)),
            "prompt.omits: 'weight' is unknown. Use some of view, sex, age, bmi",
        ),
        (dict(tokenizer="letters"), "prompt.tokenizer='letters'"),
    ],
)
def test_templates_that_lose_something_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        make_tokenizer(prompt_settings(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        dict(length=18),
        dict(template="{sex} {age} {view} {bmi}"),
        dict(template="{noun} {age}", omits=("bmi", "view")),
        dict(template="", length=2, omits=("view", "sex", "age", "bmi")),
    ],
)
def test_templates_that_fit_are_not(changes):
    config = prompt_settings(**changes)
    assert make_tokenizer(config)([""]).shape == (1, config.prompt.length)


def clip_tokenizer(folder, merges=("a n",)):
    """Writes the two files of a CLIP tokenizer over single letters; returns their folder."""
    folder.mkdir()
    letters = [chr(c) for c in range(33, 127)]
    words = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
    ]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    ).save_pretrained(folder)
    return folder


def test_pretrained_tokenizers_are_held_to_it_too(tmp_path):
    """Prompts beyond CLIP's limit of 77 tokens or with unknown letters are refused.

    CLIP replaces a letter that is not in its vocabulary by the end token.
    """
    folder = clip_tokenizer(tmp_path / "tokenizer")
    tokenizer = pretrained_tokenizer(folder, 77)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["a man, 45 years old", "", "an old woman"]
    wanted = reference(texts, padding="max_length", max_length=77, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(tokenizer(texts), wanted)
    assert tokenizer(["x" * 75]).shape == (1, 77)
    with pytest.raises(
        InputError,
        match="prompt.template: .* needs 78 tokens, .* Shorten it, .* the text encoder takes 77",
    ):
        tokenizer(["x" * 76])
    with pytest.raises(InputError, match="doesn't know 'caf\u00e9'"):
        tokenizer(["a caf\u00e9 of men"])


def test_texts_that_the_tokenizer_takes_for_one_are_refused(tmp_path, monkeypatch):
    """A tokenizer that drops unknown characters, as lower-casing or accent-stripping ones do."""
    from cranio_jax.data import prompts

    def deaf(length):
        return prompts.PromptTokenizer(
            length,
            0,
            lambda texts, marks: [[1, len(text) % 7, 2] for text in texts],
            None,
            77,
            {str(i): i for i in range(8)},
        )

    monkeypatch.setattr(prompts, "word_tokenizer", deaf)
    prompts._checked.cache_clear()
    with pytest.raises(InputError, match="have the same token ids"):
        make_tokenizer(common.get_config())
    prompts._checked.cache_clear()


def test_a_run_refuses_before_it_builds_anything(tmp_path):
    from cranio_jax import main

    config: ml_collections.ConfigDict = from_scratch.get_config("smoke")
    config.prompt.length = 16
    config.data.data_dir = str(tmp_path / "records")
    with pytest.raises(InputError, match="needs 18 tokens"):
        main.run(config, pathlib.Path(tmp_path / "work"))
    assert not (tmp_path / "records").exists() and not (tmp_path / "work").exists()
