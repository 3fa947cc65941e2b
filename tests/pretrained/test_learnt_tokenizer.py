"""A tokenizer that is learnt from the prompts' words is CLIP's in every other respect."""

import pytest
import transformers

from cranio_jax.data import __main__ as command
from cranio_jax.data.prompts import WORDS, pretrained_tokenizer
from cranio_jax.errors import InputError
from cranio_jax.pretrained import learn_tokenizer

PROMPT = "portrait of a woman, frontal view, 45 years old, 10 percent less weight"


@pytest.fixture
def folder(tmp_path, capsys):
    command.main(["tokenizer", str(tmp_path / "learnt")])
    assert "tokens" in capsys.readouterr().out
    return tmp_path / "learnt"


def test_each_word_is_one_token(folder):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    words = [word for word in WORDS if word.isalpha()]
    assert len(words) > 30
    assert [word for word in words if len(tokenizer.tokenize(word)) != 1] == []
    # Both marks, and each digit and comma, are tokens too.
    ids = tokenizer(PROMPT)["input_ids"]
    assert len(ids) == 20 and ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == PROMPT.replace(
        " ", ""
    )


def test_any_other_word_is_spelled(folder):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    for text in ("moustache", "Übergröße", "日本", "x-ray!"):
        tokens = tokenizer(text)["input_ids"][1:-1]
        assert tokenizer.unk_token_id not in tokens
        spelled = tokenizer.decode(tokens).replace(" ", "")
        assert spelled == text.lower()


def test_it_is_read_as_a_published_one(folder):
    """The folder holds the same ids in vocab.json with merges.txt as in tokenizer.json."""
    ids = pretrained_tokenizer(folder, 32)([PROMPT])[0]
    (folder / "tokenizer.json").unlink()
    assert (pretrained_tokenizer(folder, 32)([PROMPT])[0] == ids).all()
    with pytest.raises(InputError, match="prompt.length=10"):
        pretrained_tokenizer(folder, 10)([PROMPT])


def test_nothing_is_overwritten(folder):
    with pytest.raises(InputError, match="exists; remove it"):
        learn_tokenizer(["face"], folder, 32)
