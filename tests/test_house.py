"""The rooms of the house: which may use which."""

import ast
import builtins
import dis
import pathlib
import types

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


def codes_in(code):
    """Yields a code object and all that are nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_in(constant)


def test_every_name_is_defined():
    """The linter's rule can't be used: it takes the axes in jaxtyping's shapes for names."""
    wrong = []
    for folder in ("cranio_jax", "data_builders", "configs", "launch", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            module = compile(path.read_text(), str(path), "exec")
            known = {*dir(builtins), "__file__", "__annotations__", "__path__"}
            known |= {
                step.argval
                for code in codes_in(module)
                for step in dis.get_instructions(code)
                if step.opname in ("STORE_NAME", "STORE_GLOBAL")
            }
            wrong += [
                (str(path.relative_to(ROOT)), step.argval)
                for code in codes_in(module)
                for step in dis.get_instructions(code)
                if step.opname in ("LOAD_NAME", "LOAD_GLOBAL") and step.argval not in known
            ]
    assert not wrong
