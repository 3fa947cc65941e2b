"""The rooms of the house: which may use which."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A room uses those above it in this list, never those below.
ROOMS = (
    *(
        "errors",
        "assets",
        "distributed",
        "files",
        "models",
        "diffusion",
        "pretrained",
        "metrics",
        "data",
    ),
    *("methods", "runs", "evaluation", "reporting", "training", "jobs", "main"),
)


def imports_of(path):
    """Yields the dotted names that a file imports, those inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_uses_rooms_above_it_alone():
    package = ROOT / "cranio_jax"
    assert {path.stem for path in package.glob("*.py")} == {"__init__", "errors", "main"}
    wrong = []
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for name in imports_of(path):
            other = name.split(".")[1] if name.startswith("cranio_jax.") else ""
            if other in ROOMS and ROOMS.index(other) > ROOMS.index(room):
                wrong.append((str(path.relative_to(package)), name))
    assert not wrong


def test_builders_stand_alone():
    """The program may use data_builders/, not the other way round."""
    names = {name for path in (ROOT / "data_builders").rglob("*.py") for name in imports_of(path)}
    assert not [name for name in names if name.split(".")[0] in ("cranio_jax", "configs", "launch")]
