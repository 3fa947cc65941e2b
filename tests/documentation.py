"""The pages of the documentation: their commands, their links and their sentences."""

import ast
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARKDOWN = (
    "*.md",
    "docs/**/*.md",
    "cranio_jax/**/*.md",
    "launch/*.md",
    "data_builders/**/*.md",
    "results/*.md",
)

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_COMMENT = re.compile(r"(^|\s)#\s.*")
# Outside of fenced blocks a command is known by its program. "... " repeats the command above.
_PROGRAM = re.compile(
    r"(\.\.\.|(\w+=\S+ )?(python|pip|bash|sbatch|gcloud|tfds|git|ruff|launch/\S+\.sh)) \S"
)
_MODULE_ALONE = re.compile(r"python -m \S+")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_HTML_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# What begins a paragraph of its own: a heading, an item of a list.
_ITEM = re.compile(r"^\s*(#+|[-*]|\d+\.) +")
_SENTENCE_END = re.compile(r"(?<=[.!?])[*_\"')]*\s+")


def markdown_pages() -> dict[str, str]:
    """Returns the text of each Markdown file by its path."""
    paths = sorted({path for pattern in MARKDOWN for path in ROOT.glob(pattern)})
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def pages() -> dict[str, str]:
    """Returns the text of each page by path: Markdown files, and docstrings of configurations."""
    texts = markdown_pages()
    for path in sorted(ROOT.glob("configs/*.py")):
        texts[f"configs/{path.name}"] = ast.get_docstring(ast.parse(path.read_text())) or ""
    return texts


def commands_of(text: str) -> Iterator[str]:
    """Yields each command of a page on one line; a block of Python as it is."""
    for language, block in _FENCED.findall(text):
        if language == "python":
            yield block
        else:
            yield from _lines(block)
    prose = _FENCED.sub("", text)
    for command in [*_lines(prose), *inline_of(text)]:
        if _PROGRAM.match(command) and not _MODULE_ALONE.fullmatch(command):
            yield command


def inline_of(text: str) -> Iterator[str]:
    """Yields the code between backticks, which may continue on the next line."""
    for paragraph in re.split(r"\n\s*\n", _FENCED.sub("", text)):
        for code in _INLINE.findall(paragraph):
            yield " ".join(code.split())


def links_of(text: str) -> Iterator[str]:
    """Yields the target of each link and picture of a page."""
    for _, _, target in _LINK.findall(_without_code(text)):
        yield target


def anchors_of(text: str) -> set[str]:
    """Returns the names that links to a page's headings have, as GitHub makes them."""
    headings = _HEADING.findall(_FENCED.sub("", text))
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in words}


def sentences_of(text: str) -> Iterator[str]:
    """Yields each sentence of a page's prose.

    Tables and fenced blocks are left out, code counts as one word and a link as its text.
    """
    prose = _LINK.sub(r"\2", _without_code(_HTML_COMMENT.sub("", text)))
    for paragraph in _paragraphs(prose):
        yield from filter(None, _SENTENCE_END.split(paragraph))


def _without_code(text: str) -> str:
    """Returns a page without fenced blocks, and with a word for code between backticks."""
    return _INLINE.sub("code", _FENCED.sub("", text))


def _paragraphs(prose: str) -> Iterator[str]:
    """Yields paragraphs, headings and items of lists on one line each, without tables."""
    words: list[str] = []
    for line in [*prose.splitlines(), ""]:
        in_table = line.lstrip().startswith("|")
        if in_table or not line.strip() or _ITEM.match(line):
            yield " ".join(words)
            words = []
        if not in_table:
            words.extend(_ITEM.sub("", line).split())
        if line.startswith("#"):
            yield " ".join(words)
            words = []


def _lines(block: str) -> Iterator[str]:
    """Yields commands without comments; a backslash continues one, `&&` begins another."""
    for line in block.replace("\\\n", " ").splitlines():
        for part in _COMMENT.sub("", line).split(" && "):
            if command := " ".join(part.removeprefix("$ ").split()):
                yield command
