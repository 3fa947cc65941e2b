"""Links, lengths and sentences of the Markdown pages."""

import pytest

from tests.documentation import ROOT, anchors_of, links_of, markdown_pages, sentences_of

README_LINES = 150
README_WORDS = 25  # in a sentence
WORDS = 45  # in a sentence of any other page
FOLDERS = ("cranio_jax", "configs", "data_builders", "docs", "launch", "results", "tests")

PAGE = """# A title
A first sentence with `code of four words`. A [second one](https://example.org/a.b)
ends here! See:

- an item

| a table | is left out. |
| --- | --- |

```
python is left out.
```
The **last.** One.
"""


def test_sentences_of_a_page():
    assert list(sentences_of(PAGE)) == [
        "A title",
        "A first sentence with code.",
        "A second one ends here!",
        "See:",
        "an item",
        "The **last.",
        "One.",
    ]
    assert list(links_of(PAGE)) == ["https://example.org/a.b"]
    assert anchors_of("# What `fsdp`, if any, costs\n") == {"what-fsdp-if-any-costs"}


def test_all_pages_are_seen():
    """A page outside of the patterns would be checked by nothing."""
    pages = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")}
    pages |= {ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
    assert {str(path.relative_to(ROOT)) for path in pages} <= set(markdown_pages())


@pytest.mark.parametrize("page", markdown_pages())
def test_links_point_at_files(page):
    for link in links_of(markdown_pages()[page]):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), f"{page} links {link}"
        assert not anchor or anchor in anchors_of(target.read_text()), f"{page} links {link}"


def test_the_index_has_all_pages():
    """Pages in docs/ can be found from their index."""
    links = set(links_of(markdown_pages()["docs/README.md"]))
    in_docs = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert in_docs <= links


def test_the_readme_is_short():
    assert len(markdown_pages()["README.md"].splitlines()) <= README_LINES


@pytest.mark.parametrize("page", markdown_pages())
def test_sentences_are_short(page):
    longest = README_WORDS if page == "README.md" else WORDS
    text = markdown_pages()[page]
    assert not [words for words in sentences_of(text) if len(words.split()) > longest]
