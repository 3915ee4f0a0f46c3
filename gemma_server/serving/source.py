"""Which versions are wanted of which models: those in a directory, or what a file says.

The rules of the directory are TensorFlow Serving's, `file_system_storage_path_source.cc`, but for
two: a version counts only once its files have stayed as they are from one poll to the next, and a
directory that is empty all at once takes no version away.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gemma_server.errors import GemmaServerError
from gemma_server.serving.model_spec import BadModelsFile, ModelsFile, ModelSpec, read_models_file
from gemma_server.serving.policy import POLICIES, Policy, availability_preserving
from gemma_server.serving.residency import Residency

_NUMBER = re.compile(r"[0-9]{1,18}")
WARMUP = "warmup.jsonl"  # beside a version's checkpoint: bodies of /prompt that it has to answer


class SourceFailed(GemmaServerError):
    """It is not known which versions are wanted: what was wanted before stays so."""


class Wanted(NamedTuple):
    """A version to serve, and a signature that changes with its files."""

    path: Path
    signature: str = ""


@dataclass(frozen=True)
class WantedModel:
    """What is wanted of one model."""

    versions: Mapping[int, Wanted]
    policy: Policy = availability_preserving
    labels: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  # settings of its own
    residency: Residency = field(default_factory=Residency)
    weights: Mapping[int, int] = field(default_factory=dict)  # of versions
    error: str = ""  # why its versions could not be looked at: they are those of before


class WantedModels(NamedTuple):
    """What is wanted of each model, and which of them answers a request that names none."""

    models: Mapping[str, WantedModel]
    first: str


class Source(Protocol):
    """What says which versions of which models are wanted."""

    def poll(self) -> WantedModels:
        """What is wanted now.

        Raises:
            SourceFailed: it cannot tell.
        """
        ...


class ConfiguredModels:
    """The models that `read` tells, each with its directory of versions or its one checkpoint.

    `read` is called in every poll. `max_queue` is how many requests may wait for a model that does
    not say so itself.
    """

    def __init__(self, read: Callable[[], ModelsFile], max_queue: int = 256) -> None:
        self._read, self._max_queue = read, max_queue
        self._directories: dict[Path, VersionDirectory] = {}

    def poll(self) -> WantedModels:
        """Those versions of each model that are whole, as far as it wants them.

        Raises:
            SourceFailed: the models are not known.
        """
        said = self._read()
        bases = {spec.base_path for spec in said.models.values()}
        self._directories = {
            base: self._directories.get(base) or VersionDirectory(base) for base in bases if base
        }
        for directory in self._directories.values():
            directory.look()
        models = {name: self._wanted(spec) for name, spec in said.models.items()}
        return WantedModels(models, said.first)

    def _wanted(self, spec: ModelSpec) -> WantedModel:
        if spec.checkpoint is not None:
            versions = {1: Wanted(spec.checkpoint, _signature_of(spec.checkpoint))}
            error = ""
        else:
            assert spec.base_path is not None
            found = self._directories[spec.base_path]
            versions = {number: found.whole[number] for number in spec.choose(found.whole)}
            error = found.error
        return WantedModel(
            versions,
            POLICIES[spec.policy],
            spec.labels,
            spec.options,
            Residency(
                on_request=spec.load == "request",
                pinned=spec.pinned,
                keep_alive_s=spec.keeps_s,
                max_waiting=int(spec.options.get("max_queue", self._max_queue)),
            ),
            spec.weights,
            error,
        )


class ReadModelsFile:
    """Reads a file of models again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said: ModelsFile | None = None
        self._signature = ""  # of what was read

    def __call__(self) -> ModelsFile:
        """What it says.

        Raises:
            SourceFailed: it cannot be read, or says what cannot be.
        """
        signature = _signature_of(self._path)
        if self._said is None or signature != self._signature:
            try:
                self._said = read_models_file(self._path)
            except BadModelsFile as error:
                raise SourceFailed(str(error)) from None
            self._signature = signature
        return self._said


@dataclass
class VersionDirectory:
    """A directory whose children with whole numbers as names are versions of a model."""

    base: Path
    whole: Mapping[int, Wanted] = field(default_factory=dict)  # by their numbers, lowest first
    error: str = ""  # why it cannot be read: what was whole before stays so
    _seen: dict[int, str] = field(default_factory=dict)  # signatures at the last look

    def look(self) -> None:
        """See which versions are whole: those whose files are as they were at the last look."""
        try:
            found = version_numbers(self.base)
            signatures = {number: _signature(path) for number, path in found.items()}
            checkpoints = {number: _checkpoint_in(path) for number, path in found.items()}
        except OSError as error:
            self.error = f"{self.base}: {error.strerror or error}"
            return
        self.error = ""
        unchanged = [
            number for number, each in signatures.items() if self._seen.get(number) == each
        ]
        self._seen = signatures
        whole = {number: self.whole[number] for number in self.whole.keys() & found.keys()}
        whole |= {number: Wanted(checkpoints[number], signatures[number]) for number in unchanged}
        if found or not self.whole:
            self.whole = {number: whole[number] for number in sorted(whole)}


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


def _signature_of(path: Path) -> str:
    """The signature, or nothing of what cannot be read."""
    try:
        return _signature(path)
    except OSError:
        return ""
