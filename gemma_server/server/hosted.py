"""What a worker hosts: a model from loading to draining."""

import threading
import time
from dataclasses import replace
from typing import Protocol

from gemma_server.frames.operations import OperationService
from gemma_server.frames.service import Service
from gemma_server.server import memory
from gemma_server.server.progress import report_progress
from gemma_server.serving.engines import OnDeath
from gemma_server.serving.model import GenerativeModel, LoadedModel
from gemma_server.serving.models import DEFAULT_NAME, Models
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import Settings


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
        self._models = models

    def load(self, on_death: OnDeath) -> LoadedModel:
        """Load the model that the settings name, and show the progress; of a directory of versions
        the first that can be, and the others as they come.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        loaded = self._load_one(on_death)
        if not isinstance(loaded, GenerativeModel):
            self.example = None  # there is nothing to prompt
        return loaded

    def _load_one(self, on_death: OnDeath) -> LoadedModel:
        """The one checkpoint: what befalls it befalls the process."""
        version = ServableVersion(self.settings.model_name or DEFAULT_NAME)
        self._models.add(version)
        self._models.to_loading(version)
        began = time.monotonic()
        loaded = SettingsLoader(self.settings).load(version, on_death)
        self._models.to_available(version, loaded, time.monotonic() - began)
        return loaded

    def drain(self) -> None:
        """Refuse new requests."""
        self._models.drain()

    def stop(self) -> None:
        """Fail the requests that still run."""
        self._models.stop()


class SettingsLoader:
    """Loads versions with the server's settings, and shows how far that is."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self, version: ServableVersion, on_death: OnDeath) -> LoadedModel:
        """Load the version's checkpoint, or that of the settings if it has none.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        from gemma_server.serving.loader import load_model

        threading.Thread(
            target=report_progress, args=(version,), name="progress", daemon=True
        ).start()
        settings = self._settings
        if version.path is not None:
            own = {"model_checkpoint": version.path, "model_name": version.name}
            settings = settings.model_copy(update=own)
        loaded = load_model(settings, version, on_death)
        return replace(loaded, version=version.number)

    def unloaded(self) -> None:
        """Give the memory of what was unloaded back."""
        memory.reclaim()
