"""Reading the config.json of a published network into a dataclass."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def from_mapping(cls: type[T], fields: Mapping[str, Any], fixed: Mapping[str, Any]) -> T:
    """Builds the configuration `cls` from the fields of a config.json.

    Args:
      cls: a dataclass whose fields are named as in the file.
      fields: the file's content. Fields that begin with an underscore are notes of the writer.
      fixed: fields that the network knows but implements for one value only, or for several
        that mean the same (a tuple); `...` stands for any value.

    Raises:
      ValueError: a field is unknown, or has a value that the network does not implement.
    """
    declared: Any = cls
    known = {f.name for f in dataclasses.fields(declared)}
    taken = {}
    for name, value in fields.items():
        if name.startswith("_"):
            continue
        if name in known:
            taken[name] = tuple(value) if isinstance(value, (list, tuple)) else value
        elif name not in fixed:
            raise ValueError(f"{cls.__name__}: unknown field {name!r} (value {value!r})")
        elif fixed[name] is not ...:
            allowed = fixed[name] if isinstance(fixed[name], tuple) else (fixed[name],)
            if value not in allowed:
                raise ValueError(
                    f"{cls.__name__}: {name}={value!r} is not implemented; only {allowed[0]!r} is"
                )
    return cls(**taken)


def per_block(value: Any, blocks: int, name: str) -> tuple:
    """Returns a per-block setting as one value for each block.

    Raises ValueError, naming the field, for another number of values.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * blocks
    if len(values) != blocks:
        raise ValueError(f"{name} has {len(values)} entries, block_out_channels has {blocks}")
    return values


def collapsed(values: tuple) -> Any:
    """Returns the one value if all blocks have the same, else the tuple."""
    return values[0] if all(value == values[0] for value in values) else values
