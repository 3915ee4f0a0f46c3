"""What a worker hosts: models from loading to draining."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

from gemma_server.console import say
from gemma_server.errors import ModelLoadError
from gemma_server.frames.operations import OperationService
from gemma_server.frames.service import Service
from gemma_server.server import memory
from gemma_server.server.progress import report_progress
from gemma_server.server.warmup import warm_up
from gemma_server.serving.engines import OnDeath
from gemma_server.serving.gently import short_turns
from gemma_server.serving.manager import Manager
from gemma_server.serving.model import EmbeddingModel, LoadedModel, OpenedModel
from gemma_server.serving.model_spec import ModelsFile, ModelSpec, read_models_file
from gemma_server.serving.models import Models
from gemma_server.serving.rate_limit import ModelRateLimits
from gemma_server.serving.registry import Registry
from gemma_server.serving.room import in_mb
from gemma_server.serving.source import ConfiguredModels, ReadModelsFile
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import Settings

_LOOK_S = 0.5
_EMPTY_S = 5.0  # until a directory without a version is worth a word


class Loaded(Protocol):
    """What the ready line says."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def device(self) -> str:
        """The device that it runs on."""
        ...

    @property
    def load_s(self) -> float:
        """Seconds from the start of loading to ready."""
        ...


@dataclass(frozen=True)
class Absent:
    """A model that is loaded when it is asked for."""

    name: str
    load_s: float
    device: str = "loaded when asked for"


class Hosted(Protocol):
    """A model as its worker sees it; an app brings its own in `extensions["hosted"]`."""

    @property
    def settings(self) -> Settings:
        """Where to listen, and how long to drain."""
        ...

    @property
    def service(self) -> Service:
        """What frames mean."""
        ...

    @property
    def example(self) -> str | None:
        """A body to try /prompt with."""
        ...

    def load(self, on_death: OnDeath) -> Loaded:
        """Load the model. `on_death` is called if it dies later.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        ...

    def poll(self) -> None:
        """Look now which versions are wanted; a signal handler calls this."""
        ...

    def drain(self) -> None:
        """Refuse new requests; a signal handler calls this."""
        ...

    def stop(self) -> None:
        """Fail the requests that still run."""
        ...


class HostedGemma:
    """The models that the settings name, and their frames service."""

    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings = settings
        self.service = OperationService(models)
        self.example: str | None = '{"prompt": "The capital of France is", "sampling_steps": 16}'
        self._models, self._registry = models, models.registry
        self._manager: Manager | None = None  # unless there is one checkpoint

    def load(self, on_death: OnDeath) -> Loaded:
        """Load the model that the settings name, and show the progress; of a directory of versions
        the first that can be, and the others as they come. One that is loaded when it is asked for
        is not waited for.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        watches = self.settings.watches_files
        loaded = self._load_first(on_death) if watches else self._load_one(on_death)
        if isinstance(loaded, EmbeddingModel):
            self.example = None  # there is nothing to prompt
        return loaded

    def _load_one(self, on_death: OnDeath) -> LoadedModel:
        """The one checkpoint: what befalls it befalls the process."""
        version = ServableVersion(self._registry.default)
        self._registry.add(version)
        self._registry.to_loading(version)
        began = time.monotonic()
        loader = VersionLoader(self.settings, self._registry)
        version.opened = loader.open(version)
        if version.opened.needs_bytes > self._registry.memory_limit:
            raise ModelLoadError(
                f"the model needs {in_mb(version.opened.needs_bytes)} of memory, and "
                f"{in_mb(self._registry.memory_limit)} are allowed; see --memory-limit"
            )
        loaded = loader.load(version, on_death)
        version.bytes = loaded.memory_bytes
        self._registry.to_available(version, loaded, time.monotonic() - began)
        return loaded

    def _load_first(self, on_death: OnDeath) -> Loaded:
        """Begin to manage versions, and wait until the first model takes requests."""
        settings, began = self.settings, time.monotonic()
        self._manager = Manager(
            self._registry,
            ConfiguredModels(_reader(settings), settings.max_queue),
            VersionLoader(settings, self._registry),
            on_death,
            poll_s=settings.model_poll_seconds,
            drain_s=settings.drain_timeout,
        )
        threading.Thread(target=self._manager.run, name="manager", daemon=True).start()
        said_by = time.monotonic() + _EMPTY_S
        while (loaded := self._registry.first()) is None:
            self._registry.wait_for_a_change(_LOOK_S)
            first = self._registry.model(self._registry.default)
            if first is not None and first.can_come():
                return Absent(first.name, time.monotonic() - began)
            versions = self._registry.versions(self._registry.default)
            if versions and all(each.has_failed for each in versions):
                raise ModelLoadError("; ".join(f"{each}: {each.error}" for each in versions))
            if not versions and time.monotonic() > said_by:
                said_by = math.inf
                say(f"model {self._registry.default} has no version yet: waiting for one")
        return loaded

    def poll(self) -> None:
        """Look now which versions are wanted; a signal handler calls this."""
        if self._manager is not None:
            self._manager.poll_soon()

    def drain(self) -> None:
        """Refuse new requests, and load nothing more."""
        self._models.drain()
        if self._manager is not None:
            self._manager.stop()

    def stop(self) -> None:
        """Fail the requests that still run."""
        self._models.stop()


def first_model(settings: Settings) -> str:
    """The model that answers a request that names none, as far as its name is known.

    Raises:
        BadModelsFile: it stands in a file that says what cannot be.
    """
    if settings.model_config_file is None:
        return settings.served_name
    return read_models_file(settings.model_config_file).first


def _reader(settings: Settings) -> Callable[[], ModelsFile]:
    """What tells the models: a file, or the settings as one.

    Raises:
        ModelLoadError: there is no such directory.
    """
    if settings.model_config_file is not None:
        return ReadModelsFile(settings.model_config_file)
    base = settings.model_base_path
    if base is None or not base.is_dir():
        raise ModelLoadError(f"--model-base-path {base}: there is no such directory")
    # Not checked: the directory may have any name.
    one = ModelsFile.model_construct(models={settings.served_name: ModelSpec(base_path=base)})
    return lambda: one


class VersionLoader:
    """Loads versions with the server's settings, and shows how far that is."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings, self._registry = settings, registry
        if settings.memory_limit is not None:
            registry.memory_limit = settings.memory_limit
        self._rate_limits = ModelRateLimits()

    def open(self, version: ServableVersion) -> OpenedModel:
        """Open the version's checkpoint, or that of the settings if it has none.

        Raises:
            ModelLoadError: it cannot be opened.
        """
        from gemma_server.serving.loader import open_model

        if version.path is not None:
            say(f"opening {version} at {version.path}")
        threading.Thread(
            target=report_progress, args=(version,), name="progress", daemon=True
        ).start()
        with self._in_short_turns():
            opened = open_model(self._settings_of(version), version, gently=self._serves())
        if self._settings.memory_limit is None:
            self._registry.memory_limit = opened.device_bytes
        return opened

    def load(self, version: ServableVersion, on_death: OnDeath) -> LoadedModel:
        """Load what was opened. A version from a directory of versions also has to answer before it
        takes requests.

        Raises:
            ModelLoadError: it cannot be loaded, or does not answer.
        """
        assert version.opened is not None
        with self._in_short_turns():
            loaded = replace(version.opened.load(on_death), version=version.number)
        if version.path is not None:
            version.at("answering the first prompts")
            try:
                warm_up(loaded, version.path)
            except ModelLoadError:
                loaded.worker.stop()
                raise
        settings = self._settings_of(version)
        most = settings.requests_per_minute, settings.tokens_per_minute
        return replace(loaded, rate_limit=self._rate_limits.of(version.name, *most))

    def unloaded(self) -> None:
        """Give the memory of what was unloaded back."""
        memory.reclaim()

    def _settings_of(self, version: ServableVersion) -> Settings:
        """The server's, but for those of its model's own."""
        if version.path is None:
            return self._settings
        own = {"model_checkpoint": version.path, "model_name": version.name}
        return self._settings.model_copy(update={**version.options, **own})

    def _in_short_turns(self) -> AbstractContextManager[None]:
        return short_turns() if self._serves() else nullcontext()

    def _serves(self) -> bool:
        """Whether requests are answered meanwhile."""
        return any(model.serving() for model in self._registry.served())
