"""What the documentation holds in code: its commands, and its flags and fields."""

import ast
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARKDOWN = ("*.md", "docs/**/*.md", "launch/*.md", "data_builders/**/*.md", "results/*.md")

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_COMMENT = re.compile(r"(^|\s)#\s.*")
# A fenced block that begins so is what a program prints.
_PRINTED = re.compile(r"case +px batch|text encoder +relative error")
# Outside of fenced blocks a command is known by its program. "... " repeats the command above.
_PROGRAM = re.compile(
    r"(\.\.\.|(\w+=\S+ )?(python|pip|bash|sbatch|gcloud|tfds|git|launch/\S+\.sh)) \S"
)
_MODULE_ALONE = re.compile(r"python -m \S+")


def pages() -> dict[str, str]:
    """Returns the text of each page by path: Markdown files, and docstrings of configurations."""
    found = {}
    for pattern in MARKDOWN:
        for path in sorted(ROOT.glob(pattern)):
            found[str(path.relative_to(ROOT))] = path.read_text()
    for path in sorted(ROOT.glob("configs/*.py")):
        found[f"configs/{path.name}"] = ast.get_docstring(ast.parse(path.read_text())) or ""
    return found


def commands_of(text: str) -> Iterator[str]:
    """Yields each command of a page on one line; a block of Python as it is."""
    for language, block in _FENCED.findall(text):
        if language == "python":
            yield block
        elif not _PRINTED.match(block):
            yield from _lines(block)
    prose = _FENCED.sub("", text)
    for command in [*_lines(prose), *inline_of(text)]:
        if _PROGRAM.match(command) and not _MODULE_ALONE.fullmatch(command):
            yield command


def inline_of(text: str) -> Iterator[str]:
    """Yields what stands between backticks, which may go on in the next line."""
    for paragraph in re.split(r"\n\s*\n", _FENCED.sub("", text)):
        for code in _INLINE.findall(paragraph):
            yield " ".join(code.split())


def _lines(block: str) -> Iterator[str]:
    """Yields commands without comments; a backslash goes on, `&&` begins another one."""
    for line in block.replace("\\\n", " ").splitlines():
        for part in _COMMENT.sub("", line).split(" && "):
            if command := " ".join(part.removeprefix("$ ").split()):
                yield command
