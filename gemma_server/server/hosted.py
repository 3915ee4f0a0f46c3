"""What a worker hosts: a model from loading to draining."""

import threading
from typing import Protocol

from gemma_server.frames.operations import OperationService
from gemma_server.frames.service import Service
from gemma_server.server.progress import report_progress
from gemma_server.serving.engines import OnDeath
from gemma_server.serving.model import GenerativeModel, LoadedModel, ServedModel
from gemma_server.serving.models import Models
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
    """A Gemma model, its engine, and its frames service."""

    def __init__(self, settings: Settings, model: ServedModel, models: Models) -> None:
        self.settings = settings
        self.service = OperationService(models)
        self.example: str | None = '{"prompt": "The capital of France is", "sampling_steps": 16}'
        self._model = model

    def load(self, on_death: OnDeath) -> LoadedModel:
        """Load the model that the settings name, and show the progress.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        from gemma_server.serving.loader import load_model

        threading.Thread(
            target=report_progress, args=(self._model,), name="progress", daemon=True
        ).start()
        load_model(self.settings, self._model, on_death)
        loaded = self._model.loaded
        assert loaded is not None
        if not isinstance(loaded, GenerativeModel):
            self.example = None  # there is nothing to prompt
        return loaded

    def drain(self) -> None:
        """Refuse new requests."""
        self._model.drain()

    def stop(self) -> None:
        """Fail the requests that still run."""
        if self._model.loaded is not None:
            self._model.loaded.worker.stop()
