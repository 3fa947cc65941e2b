"""The type checker for jaxtyping's import hook: whole numbers count as real ones, as in PEP 484."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
