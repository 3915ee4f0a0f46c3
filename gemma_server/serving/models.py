"""The models of this process by name, and the leases that requests hold on them."""

import threading
from types import TracebackType

from gemma_server.errors import ModelNotFound
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import LoadedModel, Readiness, ServedModel


class Lease:
    """A request's hold on a model: it is not unloaded while one is out."""

    def __init__(self, models: "Models", model: LoadedModel) -> None:
        self._models, self._model = models, model

    def __enter__(self) -> LoadedModel:
        self._models.lease_taken(1)
        return self._model

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._models.lease_taken(-1)


class Models:
    """What handlers see of the models. There is one."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._lock = threading.Lock()  # guards the count
        self.leases = 0  # that are out
        self.metrics = Metrics(model)

    def resolve(self, name: str | None) -> Lease:
        """The model of this name; Ollama's users may add `:latest`. No name is the one there is.

        Raises:
            NotReady: it is loading or draining.
            ModelNotFound: there is no model of this name.
        """
        loaded = self._model.require_ready()
        if name is not None and name not in (loaded.name, f"{loaded.name}:latest"):
            raise ModelNotFound(name)
        return Lease(self, loaded)

    def require_ready(self) -> None:
        """Refuse a request whose body need not be read.

        Raises:
            NotReady: no model takes requests.
        """
        self._model.require_ready()

    def available(self) -> list[LoadedModel]:
        """All that take requests.

        Raises:
            NotReady: none does.
        """
        return [self._model.require_ready()]

    def readiness(self) -> Readiness:
        """How far they are, for those who wait."""
        return self._model.readiness()

    def lease_taken(self, change: int) -> None:
        """Count a lease that is taken (1) or given back (-1)."""
        with self._lock:
            self.leases += change
