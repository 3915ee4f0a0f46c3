"""What a file of models says: docs/lifecycle.md."""

import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from gemma_server.duration import seconds_of
from gemma_server.errors import GemmaServerError
from gemma_server.settings import OfModel, check_setting

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Number = Annotated[int, Field(ge=0, lt=10**18)]
Duration = Annotated[float | int | str, AfterValidator(seconds_of)]


# Fields that the server has no setting for, or by another name.
_NOT_SETTINGS = {
    *("base_path", "checkpoint", "versions", "policy", "labels", "weights", "tokenizer"),
    *("load", "keep_alive", "pinned"),
}


class BadModelsFile(GemmaServerError):
    """A file of models cannot be read, or says what cannot be."""


class ModelSpec(BaseModel):
    """One model: where its versions are, which of them are served, and settings of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_path: Path | None = Field(None, description="a directory of versions")
    checkpoint: Path | None = Field(None, description="in its place: the only version, number 1")
    versions: Annotated[int, Field(ge=1)] | Literal["all"] | list[Number] = Field(
        1, description='which are served: so many of the highest, "all", or these'
    )
    policy: Literal["availability", "resource"] = Field(
        "availability",
        description="whether the old version goes after the new one has come, or before: then "
        "there is memory for one alone, and none answers meanwhile",
    )
    labels: dict[str, Number] = Field({}, description="names of versions, such as stable")
    weights: dict[Number, Annotated[int, Field(ge=0, le=10**6)]] = Field(
        {},
        description="of versions: by them requests that name none are shared out, those with the "
        "same X-Affinity to the same version; by default the highest gets all",
    )
    load: Literal["start", "request"] = Field(
        "start", description="when it is loaded: at the start, or when it is asked for first"
    )
    keep_alive: Duration = Field(
        -1.0,
        description="how long it stays in memory after its last request: seconds, or text such as "
        '"5m"; below zero for ever, or until another model needs the memory',
    )
    pinned: bool = Field(False, description="it stays in memory, whoever else needs it")
    tokenizer: Path | None = Field(None, description="as --model-tokenizer")
    dtype: OfModel = Field(None, description="as --dtype")
    slots: OfModel = Field(None, description="as --slots")
    context_length: OfModel = Field(None, description="as --context-length")
    prompt_cache_bytes: OfModel = Field(None, description="as --prompt-cache-bytes")
    max_queue: OfModel = Field(None, description="as --max-queue")
    max_queue_tokens: OfModel = Field(None, description="as --max-queue-tokens")
    max_steps: OfModel = Field(None, description="as --max-steps")
    max_draft: OfModel = Field(None, description="as --max-draft")
    requests_per_minute: OfModel = Field(None, description="as --requests-per-minute")
    tokens_per_minute: OfModel = Field(None, description="as --tokens-per-minute")
    degrade_at: OfModel = Field(None, description="as --degrade-at")
    degrade_to: OfModel = Field(None, description="as --degrade-to")
    draft_checkpoint: Path | None = Field(None, description="as --draft-checkpoint")

    @model_validator(mode="after")
    def _has_one_place(self) -> "ModelSpec":
        if (self.base_path is None) == (self.checkpoint is None):
            raise ValueError("a model has a base_path or a checkpoint, one of the two")
        if self.checkpoint is not None and self.versions != 1:
            raise ValueError("versions: a checkpoint is the only version")
        for label in self.labels:
            if not _LABEL.fullmatch(label) or label == "latest":
                raise ValueError(f"labels: {label[:100]!r} cannot be a label")
        return self

    @model_validator(mode="after")
    def _stays_or_leaves(self) -> "ModelSpec":
        if self.pinned and self.load == "request":
            raise ValueError("pinned: what stays in memory is loaded at the start")
        if self.pinned and self.keeps_s != math.inf:
            raise ValueError("keep_alive: a pinned model stays in memory")
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights: one of them has to be more than 0")
        return self

    @property
    def keeps_s(self) -> float:
        """Seconds that it stays in memory after its last request."""
        return seconds_of(self.keep_alive)

    @property
    def options(self) -> dict[str, Any]:
        """The settings of its own, by their names."""
        own = self.model_dump(
            exclude=_NOT_SETTINGS,
            exclude_none=True,
        )
        return own if self.tokenizer is None else {**own, "model_tokenizer": self.tokenizer}

    def choose(self, numbers: Iterable[int]) -> list[int]:
        """Which of the versions that are there are wanted."""
        found = sorted(numbers)
        if isinstance(self.versions, list):
            return [number for number in found if number in self.versions]
        return found if self.versions == "all" else found[-self.versions :]


class ModelsFile(BaseModel):
    """All models, and which of them answers a request that names none: by default the first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, ModelSpec] = Field(min_length=1)
    default: str | None = None

    @model_validator(mode="after")
    def _names_can_be_asked_for(self) -> "ModelsFile":
        for name in self.models:
            if not _NAME.fullmatch(name):
                raise ValueError(f"models: {name[:100]!r} cannot be a name")
        if self.default is not None and self.default not in self.models:
            raise ValueError(f"default: there is no model {self.default[:100]!r}")
        return self

    @property
    def first(self) -> str:
        """The model that answers a request that names none."""
        return self.default or next(iter(self.models))


def read_models_file(path: Path) -> ModelsFile:
    """The file, checked; its relative paths are taken from where it is.

    Raises:
        BadModelsFile: with the place in the file.
    """
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise BadModelsFile(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadModelsFile(f"{path}: not TOML: {error}") from None
    try:
        found = ModelsFile.model_validate(document)
    except ValidationError as error:
        raise BadModelsFile(f"{path}: {'; '.join(map(_problem, error.errors()[:5]))}") from None
    models = {name: _checked(path, name, spec) for name, spec in found.models.items()}
    return found.model_copy(update={"models": models})


def _problem(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"


def _checked(path: Path, name: str, spec: ModelSpec) -> ModelSpec:
    """The model with absolute paths, and with settings that can be."""
    paths = {
        field: path.parent.absolute() / value.expanduser()
        for field in ("base_path", "checkpoint", "tokenizer", "draft_checkpoint")
        if (value := getattr(spec, field)) is not None
    }
    options = {}
    for setting, value in spec.options.items():
        if setting in ModelSpec.model_fields and not isinstance(value, Path):
            try:
                options[setting] = check_setting(setting, value)
            except ValueError as error:
                raise BadModelsFile(f"{path}: models.{name}.{setting}: {error}") from None
    return spec.model_copy(update=paths | options)
