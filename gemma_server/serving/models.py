"""The models of this process by name and version, and the leases that requests hold on them."""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

from gemma_server.errors import (
    DeadlineExceeded,
    Disconnected,
    ModelNotFound,
    ModelStays,
    NotReady,
    Overloaded,
    WrongKind,
)
from gemma_server.serving.model import (
    EmbeddingModel,
    GenerativeModel,
    LoadedModel,
    Readiness,
    Status,
)
from gemma_server.serving.registry import Registry
from gemma_server.serving.served_model import ServedModel
from gemma_server.serving.version import ServableVersion, State
from gemma_server.settings import DEFAULT_NAME

Model = TypeVar("Model", bound=LoadedModel)
# A request's hold on a model, from entering to leaving the context: so long it stays loaded.
Lease = AbstractContextManager[Model]

_LOOK_S = 0.2  # at a client that waits for a model
LONGEST_WAIT_S = 300.0  # for a model to load


class Client(Protocol):
    """Who asks for a model."""

    @property
    def deadline(self) -> float | None:
        """Until when it waits, on the monotonic clock."""
        ...

    @property
    def disconnected(self) -> Callable[[], bool]:
        """Tells whether it has gone."""
        ...

    @property
    def affinity(self) -> str:
        """What its requests have in common that are to get the same version; it may be empty."""
        ...


class Models:
    """What handlers see of the models.

    A lease is given only while a version is AVAILABLE, under the lock that changes states: a
    version that is to go is out of reach in the same moment, and one that has come stays until
    those who waited for it hold it.
    """

    def __init__(
        self, default: str = DEFAULT_NAME, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = Registry(default, lambda: self.readiness()["status"] == "ready", clock)
        self.metrics = self.registry.metrics
        self._draining = False

    @property
    def _first(self) -> ServedModel | None:
        """The one that answers requests that name none."""
        return self.registry.model(self.registry.default)

    @property
    def leases(self) -> int:
        """How many are held now."""
        with self.registry.changed:
            return sum(version.leases for version in self.registry.versions())

    def resolve(self, name: str | None, client: Client | None = None) -> Lease[GenerativeModel]:
        """The model of this name, which writes text.

        Raises:
            NotReady, ModelNotFound, Overloaded, DeadlineExceeded, Disconnected: as `resolve_any`.
            WrongKind: it makes embeddings.
        """
        return self._lease(name, client, GenerativeModel)

    def resolve_embedding(
        self, name: str | None, client: Client | None = None
    ) -> Lease[EmbeddingModel]:
        """The model of this name, which makes embeddings.

        Raises:
            NotReady, ModelNotFound, Overloaded, DeadlineExceeded, Disconnected: as `resolve_any`.
            WrongKind: it writes text.
        """
        return self._lease(name, client, EmbeddingModel)

    def resolve_any(self, name: str | None, client: Client | None = None) -> Lease[LoadedModel]:
        """The version of the model of this name that its weights choose, by default the newest, or
        the one that `name@number` or `name:label` says; Ollama's users may add `:latest`. None: the
        first model. A client waits for a model that is loaded when it is asked for.

        Raises, when the lease is taken:
            NotReady: it is loading, has failed or is draining.
            ModelNotFound: there is no such model, or no such version of it.
            Overloaded: too many wait for it already.
            DeadlineExceeded: it has not loaded within the client's time.
            Disconnected: the client has gone meanwhile.
        """
        return self._lease(name, client, LoadedModel)

    @contextmanager
    def _lease(self, name: str | None, client: Client | None, kind: type[Model]) -> Iterator[Model]:
        with self.registry.changed:
            model, version = self._awaited(name, client)
            loaded = version.loaded
            assert loaded is not None
            if not isinstance(loaded, kind):
                does, asked = (
                    ("generates text", "makes no embeddings")
                    if kind is EmbeddingModel
                    else ("makes embeddings", "does not generate")
                )
                raise WrongKind(loaded.name, does, asked)
            version.leases += 1
            model.used_at = self.registry.clock()
        try:
            yield loaded
        finally:
            with self.registry.changed:
                version.leases -= 1
                model.used_at = self.registry.clock()
                self.registry.changed.notify_all()

    def require_ready(self) -> None:
        """Refuse a request before its body is read.

        Raises:
            NotReady: no model takes requests.
        """
        with self.registry.changed:
            serving = [each for model in self.registry.served() if (each := model.serving())]
            waits = any(model.can_come() for model in self.registry.served())
            stuck = bool(serving) and all(map(_is_stuck, serving))
            if self._draining or stuck or not (serving or waits):
                raise self._not_ready(self._first)

    def readiness(self) -> Readiness:
        """The status of the first model, and how far loading is, for clients that wait. One that is
        loaded when it is asked for is ready."""
        with self.registry.changed:
            model = self._first
            version = None if model is None else model.serving() or model.newest
            ready = model is not None and model.can_come()
            return {
                "status": "ready" if ready and not self._draining else self._status(version),
                "stage": "draining" if self._draining else _stage(version),
                "progress": 1.0 if self._draining else version.progress if version else None,
                "model": version.public_name if version else self.registry.default,
            }

    def known(self) -> list[tuple[ServedModel, LoadedModel | None]]:
        """The models that answer requests, each with its newest version in memory; None: it is
        loaded when it is asked for.

        Raises:
            NotReady: none does.
        """
        self.require_ready()
        with self.registry.changed:
            return [
                (model, _loaded_of(model.serving()))
                for model in self.registry.served()
                if model.answers
            ]

    def look_at(self, name: str) -> tuple[ServedModel, LoadedModel | None]:
        """A model, and what answers a request that asks for it by this name; None: nothing does at
        the moment. Nothing is loaded for it.

        Raises:
            NotReady: no model is known yet, or the server drains.
            ModelNotFound: there is no such model, or no such version of it.
        """
        with self.registry.changed:
            if self._draining:
                raise self._not_ready(None)
            model, number = self._meant(name)
            if number is not None and number not in model.versions:
                raise ModelNotFound(name)
            return model, _loaded_of(model.serving(number))

    def states(self, name: str) -> list[ServableVersion]:
        """All versions of a model that are known, the newest first.

        Raises:
            ModelNotFound: there is no such model.
        """
        with self.registry.changed:
            model = self._called(name)
            if model is None:
                raise ModelNotFound(name)
            return sorted(model.versions.values(), key=lambda each: -each.number)

    def labelled(self, name: str, label: str) -> ServableVersion:
        """The version that a label points to.

        Raises:
            ModelNotFound: there is no such model, or no such label.
        """
        with self.registry.changed:
            model, number = self._meant(f"{name}:{label}")
            version = model.newest if number is None else model.versions.get(number)
            if version is None:
                raise ModelNotFound(f"{name}:{label}")
            return version

    def keep(self, name: str, seconds: float) -> None:
        """Let a model stay so long after its last request, unless it stays anyway.

        Raises:
            ModelNotFound: there is no such model.
        """
        with self.registry.changed:
            model, _ = self._meant(name)
            model.keep_alive_s = seconds

    def release(self, name: str) -> None:
        """Let a model leave memory: it takes no more requests until it is asked for again.

        Raises:
            ModelNotFound: there is no such model.
            ModelStays: it may not leave.
        """
        with self.registry.changed:
            model, _ = self._meant(name)
            if model.stays:
                raise ModelStays(model.public_name)
            model.dismiss()

    def expires_in(self, name: str) -> float:
        """Seconds until the model leaves if nobody asks for it; infinity: it does not.

        Raises:
            ModelNotFound: there is no such model.
        """
        with self.registry.changed:
            model, _ = self._meant(name)
            return max(0.0, model.expires_at() - self.registry.clock())

    def drain(self) -> None:
        """Refuse new requests; those in flight go on. A signal handler calls this."""
        self._draining = True

    def stop(self) -> None:
        """Fail the requests that still run."""
        for version in list(self.registry.versions()):
            if (loaded := version.loaded) is not None:
                loaded.worker.stop()

    def _awaited(
        self, asked: str | None, client: Client | None
    ) -> tuple[ServedModel, ServableVersion]:
        """The version that a request means, which takes requests. A client waits for one that is
        loaded when it is asked for."""
        point, began = _point(client), self.registry.clock()
        while True:
            if self._draining:
                raise self._not_ready(None)
            model, number = self._meant(asked)
            version = model.chosen(point) if number is None else model.serving(number)
            if version is not None and not _is_stuck(version):
                return model, version
            if number is not None and number not in model.versions:
                raise ModelNotFound(asked or model.name)
            if client is None or version is not None or not model.can_come(number):
                raise self._not_ready(model, number)
            self._wait_for(model, client, began)

    def _wait_for(self, model: ServedModel, client: Client, began: float) -> None:
        """Have it loaded, and wait for a while.

        Raises:
            Overloaded, DeadlineExceeded, Disconnected, NotReady: it is not worth it any longer.
        """
        most = model.residency.max_waiting if model.residency is not None else 0
        if model.waiting >= most:
            message = f"{model.waiting} requests wait for {model.public_name} to load, of {most}"
            raise Overloaded(message, retry_after_s=5)
        model.wake(self.registry.clock())
        model.waiting += 1
        self.registry.changed.notify_all()
        self.registry.changed.wait(_LOOK_S)
        model.waiting -= 1
        try:
            if client.deadline is not None and time.monotonic() >= client.deadline:
                raise DeadlineExceeded(f"{model.public_name} has not loaded within your time")
            if client.disconnected():
                raise Disconnected(f"while {model.public_name} was loading")
            if self.registry.clock() - began >= LONGEST_WAIT_S:
                raise self._not_ready(model)
        except BaseException:
            model.forsake()
            raise

    def _meant(self, asked: str | None) -> tuple[ServedModel, int | None]:
        """The model and the version that a name says; None: the first model.

        Raises:
            ModelNotFound: there is no such model.
            NotReady: nor any other yet.
        """
        if asked is None:
            if (model := self._first) is None:
                raise self._not_ready(None)
            return model, None
        if (model := self._called(asked)) is not None:
            return model, None
        for separator in "@:":
            name, _, which = asked.rpartition(separator)
            if (model := self._called(name)) is None:
                continue
            if separator == "@" and which.isdecimal():
                return model, int(which)
            if separator == ":" and which in model.labels:
                return model, model.labels[which]
        if not any(model.answers for model in self.registry.served()):
            raise self._not_ready(self._first)  # its name may become known
        raise ModelNotFound(asked)

    def _called(self, asked: str) -> ServedModel | None:
        """The model that goes by this name."""
        for model in self.registry.served():
            name = model.public_name
            if asked in (name, f"{name}:latest"):
                return model
        return None

    def _status(self, version: ServableVersion | None) -> Status:
        if self._draining:
            return "draining"
        if version is None or version.state is not State.AVAILABLE:
            return "loading"
        return "stuck" if _is_stuck(version) else "ready"

    def _not_ready(self, model: ServedModel | None, number: int | None = None) -> NotReady:
        """Why no version, or not this one, takes requests."""
        if self._draining:
            return NotReady("draining", "the server is shutting down", retry_after_s=5)
        version = None if model is None else model.serving(number)
        if version is not None and version.loaded is not None:
            age_s = version.loaded.worker.step_age_s()
            message = f"the device has not answered for {age_s:.0f} s"
            return NotReady("stuck", message, retry_after_s=10)
        if model is not None and model.can_come():
            message = f"{model.public_name} is not in memory: a request for an answer loads it"
            return NotReady("unavailable", message, retry_after_s=2)
        if model is not None:
            version = model.newest if number is None else model.versions.get(number)
        if version is not None and version.state in (State.UNLOADING, State.END):
            message = f"{version} has ended{': ' if version.error else ''}{version.error}"
            return NotReady("unavailable", message, retry_after_s=10)
        done = "" if version is None or version.progress is None else f", {version.progress:.0%}"
        message = f"the model is loading ({_stage(version)}{done})"
        return NotReady("loading", message, retry_after_s=2)


def _point(client: Client | None) -> int:
    """Where a client's requests fall, below 2**64."""
    if client is None or not client.affinity:
        return random.getrandbits(64)
    digest = hashlib.sha256(client.affinity.encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big")


def _loaded_of(version: ServableVersion | None) -> LoadedModel | None:
    return None if version is None else version.loaded


def _is_stuck(version: ServableVersion) -> bool:
    return version.loaded is not None and version.loaded.worker.is_slow()


def _stage(version: ServableVersion | None) -> str:
    if version is None:
        return "starting"
    return f"failed: {version.error}" if version.error else version.stage
