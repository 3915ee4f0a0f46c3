"""The models of this process by name, and the leases that requests hold on them."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from gemma_server.errors import ModelNotFound, WrongKind
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import (
    EmbeddingModel,
    GenerativeModel,
    LoadedModel,
    Readiness,
    ServedModel,
)

Model = TypeVar("Model", bound=LoadedModel)
# A request's hold on a model, from entering to leaving the context: so long it stays loaded.
Lease = AbstractContextManager[Model]


class Models:
    """What handlers see of the models. There is one."""

    def __init__(self, model: ServedModel) -> None:
        self.metrics = Metrics(model)
        self.leases = 0  # held now
        self._model = model
        self._lock = threading.Lock()  # guards the count

    def resolve(self, name: str | None) -> Lease[GenerativeModel]:
        """The model of this name, which writes text.

        Raises:
            NotReady, ModelNotFound: as `resolve_any`.
            WrongKind: it makes embeddings.
        """
        loaded = self._named(name)
        if not isinstance(loaded, GenerativeModel):
            raise WrongKind(loaded.name, "makes embeddings", "does not generate")
        return self._lease(loaded)

    def resolve_embedding(self, name: str | None) -> Lease[EmbeddingModel]:
        """The model of this name, which makes embeddings.

        Raises:
            NotReady, ModelNotFound: as `resolve_any`.
            WrongKind: it writes text.
        """
        loaded = self._named(name)
        if not isinstance(loaded, EmbeddingModel):
            raise WrongKind(loaded.name, "generates text", "makes no embeddings")
        return self._lease(loaded)

    def resolve_any(self, name: str | None) -> Lease[LoadedModel]:
        """The model of this name, to which Ollama's users may add `:latest`; None: the only model.

        Raises:
            NotReady: it is loading or draining.
            ModelNotFound: there is no model of this name.
        """
        return self._lease(self._named(name))

    def require_ready(self) -> None:
        """Refuse a request before its body is read.

        Raises:
            NotReady: no model takes requests.
        """
        self._model.require_ready()

    def available(self) -> list[LoadedModel]:
        """All models that take requests.

        Raises:
            NotReady: none does.
        """
        return [self._model.require_ready()]

    def readiness(self) -> Readiness:
        """The status, and how far loading is, for clients that wait."""
        return self._model.readiness()

    def _named(self, name: str | None) -> LoadedModel:
        loaded = self._model.require_ready()
        if name is not None and name not in (loaded.name, f"{loaded.name}:latest"):
            raise ModelNotFound(name)
        return loaded

    @contextmanager
    def _lease(self, loaded: Model) -> Iterator[Model]:
        with self._lock:
            self.leases += 1
        try:
            yield loaded
        finally:
            with self._lock:
                self.leases -= 1
