"""One table in four languages: the same numbers, and words that none of them trips over."""

import html.parser
import re

import pytest

from cranio_jax.errors import InputError
from cranio_jax.evaluation.results import Scored, from_json
from cranio_jax.reporting import tables


@pytest.fixture
def results():
    def row(base):
        return {
            "psnr": {"mean": base, "low": base - 1, "high": base + 1},
            "lpips/vgg": {"mean": 0.25, "low": 0.2, "high": 0.3},
            "fid": {"mean": 12.34},
            "kid": {"mean": 0.00123, "sd": 0.0002},
            "ssim": {"mean": 0.5, "low": 0.4, "high": 0.6},
        }

    found = {
        "recall@1": {"mean": 0.4, "low": 0.3, "high": 0.5},
        "map@1": {"mean": 0.4, "low": 0.3, "high": 0.5},
        "d_prime": {"mean": 1.234},
    }
    part = {
        "gallery": 360,
        "seen": 180,
        "rows": {"a_b & 100 %": found},
        "chance": {"recall@1": 0.05},
        "curves": {},
    }
    content = {
        "rows": {"a_b & 100 %": row(20.0), "<control>": row(18.0)},
        "differences": {"a minus b": {"psnr": {"mean": 2.0, "low": 1.0, "high": 3.0}}},
        "retrieval": {"arcface/w600k_r50": {"same/all": part, "any/one": part}},
        "images": 360,
        "subjects": 20,
        "networks": {"arcface/w600k_r50": "0123456789abcdef"},
        "not_computed": {"fid": "FILE.pth"},
        "resizing": "at their own size",
    }
    return from_json(content, Scored)


def test_cells_and_their_order(results):
    pictures, against, first, second = tables.tables(results)
    order = [
        "PSNR (dB)\u00a0↑",
        "SSIM\u00a0↑",
        "LPIPS, vgg\u00a0↓",
        "FID\u00a0↓",
        "KID x 1000\u00a0↓",
    ]
    assert pictures.head == order
    wanted = [
        ("20.00", "[19.00, 21.00]"),
        ("0.500", "[0.400, 0.600]"),
        ("0.250", "[0.200, 0.300]"),
        ("12.3", ""),
        ("1.23", "± 0.20"),
    ]
    assert pictures.rows[0] == ("a_b & 100 %", wanted)
    assert against.rows[0][1] == [("+2.00", "[+1.00, +3.00]")]
    assert first.head == ["recall@1\u00a0↑", "d'\u00a0↑"] and first.main and not second.main
    assert any("of which a query sees 180" in note for note in first.notes)
    assert any("fid: not computed, needs FILE.pth" == note for note in pictures.notes)
    assert any("arcface/w600k_r50: SHA-256 0123456789ab" == note for note in pictures.notes)


def test_markdown(results):
    words = tables.markdown(results)
    for block in re.findall(r"(?:^\|.*\n)+", words, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| 20.00 [19.00, 21.00] |" in words and "Retrieval, arcface/w600k_r50, any/one" in words


def test_latex(results):
    words = tables.latex(results)
    assert words.count(r"\begin{tabular}") == words.count(r"\end{tabular}") == 4
    assert r"a\_b \& 100 \% & 20.00 {\scriptsize [19.00, 21.00]}" in words
    assert not re.search(r"(?<!\\)[_%#]", re.sub(r"\{%\n", "", words)) and words.isascii()
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", words, re.S):
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in body.strip().splitlines()}) == 1
    assert words.count("{") - words.count(r"\{") == words.count("}") - words.count(r"\}")


def test_html(results):
    words = tables.web(results, "pictures") + tables.web(results, "retrieval")
    assert "&lt;control&gt;" in words and "<control>" not in words and "a_b &amp; 100 %" in words
    opened = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag != "br":
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Reader().feed(words)
    assert not opened and words.index("<details>") > words.index("same/all")


def test_terminal_shows_the_main_tables(results):
    words = tables.text(results)
    assert "same/all" in words and "any/one" not in words
    lines = words.splitlines()
    assert lines[2].index("20.00") == lines[3].index("18.00") == lines[1].index("PSNR")


def test_a_metric_that_is_not_registered(results):
    results.rows["<control>"]["mae"] = results.rows["<control>"]["psnr"]
    with pytest.raises(
        InputError, match="the results hold 'mae', which is not a registered metric"
    ):
        tables.markdown(results)
