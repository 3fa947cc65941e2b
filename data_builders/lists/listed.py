"""The settings that builders of a user's own data share: list, secret, split and bad rows."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data_builders.errors import InputError
from data_builders.lists import splits
from data_builders.lists.pseudonyms import read_salt
from data_builders.lists.tables import stop_or_skip


@dataclasses.dataclass
class ListedConfig(tfds.core.BuilderConfig):
    """Settings of data that a list names.

    The configuration's name depends on them and on the list's content, so that no two share a
    folder.

    Attributes:
      manifest: CSV, Excel or Parquet file.
      root: folder that the list's paths are relative to and stay in; the list's own if empty.
      size: pixels along each side of X-rays and faces.
      pairing: one of PAIRINGS.
      seed: of all random draws.
      split: 'seed', 'column' (the list's), or a text file that lists the test subjects.
      test_fraction: share of the test subjects, with split='seed'.
      salt: file of the secret that pseudonyms are made with; beside the list if empty. It is
        created on first use.
      on_bad_row: 'stop', or 'skip' and say so in the metadata.
    """

    BLOCK: ClassVar[str]  # the settings are in `data.BLOCK` of the configuration
    PAIRINGS: ClassVar[tuple[str, ...]] = ("matched", "all_views")

    name: str = ""
    manifest: str = ""
    root: str = ""
    size: int = 512
    pairing: str = "matched"
    seed: int = 0
    split: str = "seed"
    test_fraction: float = 1 / 6
    salt: str = ""
    on_bad_row: str = "stop"

    def __post_init__(self):
        for field, known in (("pairing", self.PAIRINGS), ("on_bad_row", ("stop", "skip"))):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} is not one of {', '.join(known)}"
                )
        if not 16 <= self.size <= 4096:
            raise ValueError(f"size={self.size} is outside 16 to 4096 pixels")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction={self.test_fraction} is outside 0 to 1")
        if not self.manifest:
            raise ValueError("manifest is empty; it names your list, a CSV, Excel or Parquet file")
        if not self.name:
            digest = hashlib.sha256(repr(self.told()).encode())
            for path in (self.manifest_path, *([self.split_path] if self.split_path else [])):
                try:
                    digest.update(path.read_bytes())
                except OSError as error:
                    raise ValueError(f"{path}: {error.strerror or 'not readable'}") from None
            self.name = f"{self.pairing}_{self.size}-{digest.hexdigest()[:10]}"

    def told(self) -> dict[str, Any]:
        """Returns the settings that determine the data, for their metadata; none is a path."""
        hidden = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
        hidden |= {"manifest", "root", "salt", "split"}
        settings = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in hidden
        }
        return settings | {"split_by": "list" if self.split_path else self.split}

    @property
    def manifest_path(self) -> pathlib.Path:
        """The list's file."""
        return pathlib.Path(self.manifest).expanduser()

    @property
    def root_path(self) -> pathlib.Path:
        """The folder that the list's paths are relative to."""
        root = pathlib.Path(self.root) if self.root else self.manifest_path.parent
        return root.expanduser().resolve()

    @property
    def split_path(self) -> pathlib.Path | None:
        """The list of test subjects, if `split` names one."""
        return None if self.split in ("seed", "column") else pathlib.Path(self.split).expanduser()

    @property
    def secret(self) -> bytes:
        """The secret that pseudonyms are made with."""
        return read_salt(self.salt, self.manifest_path, f"data.{self.BLOCK}.salt")

    def leave_out(self, problems: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """Prints and returns the problems of rows that are left out.

        Raises InputError with all of them where on_bad_row='stop'.
        """
        return stop_or_skip(
            problems, self.manifest_path.name, self.on_bad_row, f"data.{self.BLOCK}.on_bad_row"
        )

    def split_of(self, sexes: dict[str, str], listed: dict[str, str]) -> dict[str, str]:
        """Returns the split of each subject.

        Args:
          sexes: of each subject.
          listed: each subject's split by the list, which counts where split='column'.

        Raises InputError where 'train' or 'test' would be empty.
        """
        if not sexes:
            raise InputError(f"no row of {self.manifest_path.name} can be used")
        if self.split == "column":
            split_of = listed
        elif self.split_path:
            split_of = splits.by_list(sexes, self.split_path)
        else:
            split_of = splits.by_seed(sexes, self.test_fraction, self.seed)
        if missing := {"train", "test"} - set(split_of.values()):
            raise InputError(f"the split {min(missing)!r} is empty. Change split or test_fraction.")
        return split_of


def rows_by_words(remarks: Iterable[tuple[int, str]]) -> dict[str, list[int]]:
    """Returns the numbers of each remark's rows, from pairs `(row number, words)`."""
    rows: dict[str, set[int]] = {}
    for number, words in remarks:
        rows.setdefault(words, set()).add(number)
    return {words: sorted(numbers) for words, numbers in rows.items()}
