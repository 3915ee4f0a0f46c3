"""Which versions are wanted: the one checkpoint of the settings, or a directory of versions.

The rules of the directory are TensorFlow Serving's, `file_system_storage_path_source.cc`, but for
two: a version counts only once its files have stayed as they are from one poll to the next, and a
directory that is empty all at once takes no version away.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from gemma_server.errors import GemmaServerError

_NUMBER = re.compile(r"[0-9]{1,18}")
WARMUP = "warmup.jsonl"  # beside a version's checkpoint: bodies of /prompt that it has to answer


class SourceFailed(GemmaServerError):
    """It is not known which versions are wanted: what was wanted before stays so."""


class Wanted(NamedTuple):
    """A version to serve, and a signature that changes with its files."""

    path: Path | None
    signature: str = ""


class Source(Protocol):
    """What says which versions of which models are wanted."""

    def poll(self) -> Mapping[str, Mapping[int, Wanted]]:
        """The versions of each model by their numbers.

        Raises:
            SourceFailed: it cannot tell.
        """
        ...


@dataclass(frozen=True)
class OneCheckpoint:
    """A single checkpoint, as version 1."""

    name: str
    path: Path | None = None

    def poll(self) -> Mapping[str, Mapping[int, Wanted]]:
        """Always the same."""
        return {self.name: {1: Wanted(self.path)}}


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions that are there are wanted: the `latest` so many, these `specific` ones,
    or all of them."""

    latest: int | None = 1
    specific: frozenset[int] | None = None

    def choose(self, numbers: Iterable[int]) -> list[int]:
        """The numbers that are wanted."""
        found = sorted(numbers)
        if self.specific is not None:
            return [number for number in found if number in self.specific]
        return found if self.latest is None else found[-self.latest :]


@dataclass
class VersionDirectory:
    """A directory whose children with whole numbers as names are versions of one model."""

    name: str
    base: Path
    policy: VersionPolicy = VersionPolicy()
    _seen: dict[int, str] = field(default_factory=dict)  # signatures at the last poll
    _whole: dict[int, Wanted] = field(default_factory=dict)

    def poll(self) -> Mapping[str, Mapping[int, Wanted]]:
        """The versions that are whole, as far as the policy wants them.

        Raises:
            SourceFailed: the directory cannot be read.
        """
        try:
            found = version_numbers(self.base)
            signatures = {number: _signature(path) for number, path in found.items()}
        except OSError as error:
            raise SourceFailed(f"{self.base}: {error.strerror or error}") from None
        unchanged = [
            number for number, each in signatures.items() if self._seen.get(number) == each
        ]
        self._seen = signatures
        whole = {number: self._whole[number] for number in self._whole.keys() & found.keys()}
        whole |= {number: self._wanted(number, found[number]) for number in unchanged}
        if found or not self._whole:
            self._whole = {number: whole[number] for number in sorted(whole)}
        return {self.name: {each: self._whole[each] for each in self.policy.choose(self._whole)}}

    def _wanted(self, number: int, path: Path) -> Wanted:
        return Wanted(_checkpoint_in(path), self._seen[number])


def version_numbers(base: Path) -> dict[int, Path]:
    """The children of a directory whose names are numbers, by them; where two have the same, as 1
    and 01, the last by name counts.

    Raises:
        OSError: the directory cannot be read.
    """
    children = sorted(base.iterdir())
    return {int(each.name): each for each in children if _NUMBER.fullmatch(each.name)}


def _checkpoint_in(path: Path) -> Path:
    """The only GGUF file of a directory that has nothing else to load, else the directory."""
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    return files[0] if len(files) == 1 and not (path / "config.json").exists() else path


def _signature(path: Path) -> str:
    """Of the names, sizes and times of all files below."""
    found = hashlib.sha256()
    for file in [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]:
        told = file.stat()
        times = "" if file.is_dir() else f"{told.st_size} {told.st_mtime_ns}"
        found.update(f"{file.relative_to(path)} {times}\n".encode())
    return found.hexdigest()
