"""The models of this process by name and version, and the leases that requests hold on them."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from gemma_server.errors import ModelNotFound, NotReady, WrongKind
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import (
    EmbeddingModel,
    GenerativeModel,
    LoadedModel,
    Readiness,
    Status,
)
from gemma_server.serving.version import ServableVersion, State
from gemma_server.settings import DEFAULT_NAME

Model = TypeVar("Model", bound=LoadedModel)
# A request's hold on a model, from entering to leaving the context: so long it stays loaded.
Lease = AbstractContextManager[Model]

_ENDED = 8  # versions of a model that are remembered after their end


class Models:
    """What handlers see of the models, and the one place where a version changes its state.

    A lease is given only while a version is AVAILABLE, under the lock that changes states: a
    version that is to go is out of reach in the same moment.
    """

    def __init__(self, default: str = DEFAULT_NAME) -> None:
        self.metrics = Metrics(self.versions, lambda: self.readiness()["status"] == "ready")
        self._versions: dict[str, dict[int, ServableVersion]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self.default = default
        self._draining = False
        self._changed = threading.Condition()  # guards all of it

    @property
    def leases(self) -> int:
        """How many are held now."""
        with self._changed:
            return sum(version.leases for version in self._all())

    def resolve(self, name: str | None) -> Lease[GenerativeModel]:
        """The model of this name, which writes text.

        Raises:
            NotReady, ModelNotFound: as `resolve_any`.
            WrongKind: it makes embeddings.
        """
        return self._lease(name, GenerativeModel)

    def resolve_embedding(self, name: str | None) -> Lease[EmbeddingModel]:
        """The model of this name, which makes embeddings.

        Raises:
            NotReady, ModelNotFound: as `resolve_any`.
            WrongKind: it writes text.
        """
        return self._lease(name, EmbeddingModel)

    def resolve_any(self, name: str | None) -> Lease[LoadedModel]:
        """The newest version of the model of this name, or the one that `name@number` or
        `name:label` says; Ollama's users may add `:latest`. None: the first model.

        Raises, when the lease is taken:
            NotReady: it is loading or draining.
            ModelNotFound: there is no such model, or no such version of it.
        """
        return self._lease(name, LoadedModel)

    @contextmanager
    def _lease(self, name: str | None, kind: type[Model]) -> Iterator[Model]:
        with self._changed:
            version = self._named(name)
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
        try:
            yield loaded
        finally:
            with self._changed:
                version.leases -= 1
                self._changed.notify_all()

    def require_ready(self) -> None:
        """Refuse a request before its body is read.

        Raises:
            NotReady: no model takes requests.
        """
        with self._changed:
            if self._draining or not any(map(self._serving, self._versions)):
                raise self._not_ready(self.default)
            if all(map(_is_stuck, filter(None, map(self._serving, self._versions)))):
                raise self._not_ready(self.default)

    def available(self) -> list[LoadedModel]:
        """The newest version of each model that takes requests.

        Raises:
            NotReady: none does.
        """
        self.require_ready()
        with self._changed:
            serving = filter(None, map(self._serving, self._versions))
            return [version.loaded for version in serving if version.loaded is not None]

    def first(self) -> LoadedModel | None:
        """What of the first model takes requests, if anything does."""
        with self._changed:
            version = self._serving(self.default)
            return None if version is None else version.loaded

    def readiness(self) -> Readiness:
        """The status of the first model, and how far loading is, for clients that wait."""
        with self._changed:
            version = self._serving(self.default) or self._newest(self.default)
            return {
                "status": self._status(version),
                "stage": "draining" if self._draining else _stage(version),
                "progress": 1.0 if self._draining else version.progress if version else None,
                "model": version.public_name if version else self.default,
            }

    def states(self, name: str) -> list[ServableVersion]:
        """All versions of a model that are known, the newest first.

        Raises:
            ModelNotFound: there is no such model.
        """
        with self._changed:
            key = self._key_of(name)
            if key is None:
                raise ModelNotFound(name)
            return sorted(self._versions[key].values(), key=lambda each: -each.number)

    def labelled(self, name: str, label: str) -> ServableVersion:
        """The version that a label points to.

        Raises:
            ModelNotFound: there is no such model, or no such label.
        """
        with self._changed:
            key, number = self._meant(f"{name}:{label}")
            version = self._newest(key) if number is None else self._versions[key].get(number)
            if version is None:
                raise ModelNotFound(f"{name}:{label}")
            return version

    # What changes states: for the manager, and for tests.

    def set_labels(self, name: str, labels: Mapping[str, int]) -> None:
        """Give a model these labels, and no others. One that points to a version that does not take
        requests stays where it was until that does."""
        with self._changed:
            before = self._labels.get(name, {})
            wanted = {
                label: number if self._serving(name, number) else before.get(label)
                for label, number in labels.items()
            }
            self._labels[name] = {
                label: number for label, number in wanted.items() if number is not None
            }

    def names(self) -> list[str]:
        """The models, in the order in which they came."""
        with self._changed:
            return list(self._versions)

    def versions(self, name: str | None = None) -> list[ServableVersion]:
        """Those of one model, or of all."""
        with self._changed:
            of_one = self._versions.get(name, {}) if name is not None else None
            return self._all() if of_one is None else list(of_one.values())

    def version(self, name: str, number: int) -> ServableVersion | None:
        """The one of this name and number."""
        with self._changed:
            return self._versions.get(name, {}).get(number)

    def add(self, version: ServableVersion) -> None:
        """A version is wanted. It takes the place of one of its number that has ended."""
        with self._changed:
            of_model = self._versions.setdefault(version.name, {})
            of_model[version.number] = version
            ended = [each for each in of_model.values() if each.state is State.END]
            for each in ended[:-_ENDED]:
                del of_model[each.number]

    def forget(self, name: str) -> None:
        """A model is no longer known."""
        with self._changed:
            self._versions.pop(name, None)
            self._labels.pop(name, None)

    def adopt(self, loaded: LoadedModel) -> ServableVersion:
        """Serve what is loaded already, as the first model."""
        version = ServableVersion(self.default)
        self.add(version)
        self.to_available(version, loaded)
        return version

    def to_loading(self, version: ServableVersion) -> None:
        """It is being loaded."""
        self._change(version, State.LOADING)

    def to_available(
        self, version: ServableVersion, loaded: LoadedModel, load_s: float = 0.0
    ) -> None:
        """It takes requests from now on; it has taken so many seconds to load."""
        version.at("ready", 1.0)
        version.loaded = loaded
        self.metrics.loaded(version.public_name, load_s)
        self._change(version, State.AVAILABLE)

    def to_unloading(self, version: ServableVersion) -> None:
        """It takes no more requests; those that it has go on."""
        self._change(version, State.UNLOADING)

    def to_end(self, version: ServableVersion, error: str = "") -> None:
        """It is gone; with an error it has failed."""
        if error:
            self.metrics.failed(version.public_name)
        with self._changed:
            version.error, version.loaded = error, None
            self._change(version, State.END)

    def wait_until_free(self, version: ServableVersion, timeout_s: float) -> bool:
        """Wait until no request holds it; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: version.leases == 0, timeout_s)

    def wait_for_a_change(self, timeout_s: float) -> None:
        """Wait until a version is in another state."""
        with self._changed:
            self._changed.wait(timeout_s)

    def drain(self) -> None:
        """Refuse new requests; those in flight go on. A signal handler calls this."""
        self._draining = True

    def stop(self) -> None:
        """Fail the requests that still run."""
        for version in list(self._all()):
            if (loaded := version.loaded) is not None:
                loaded.worker.stop()

    def _change(self, version: ServableVersion, state: State) -> None:
        with self._changed:
            version.state = state
            self._changed.notify_all()

    def _all(self) -> list[ServableVersion]:
        return [each for of_model in self._versions.values() for each in of_model.values()]

    def _serving(self, name: str, number: int | None = None) -> ServableVersion | None:
        """The newest version of a model that takes requests, or this one."""
        able = [
            each
            for each in self._versions.get(name, {}).values()
            if each.state is State.AVAILABLE and number in (None, each.number)
        ]
        return max(able, key=lambda each: each.number, default=None)

    def _newest(self, name: str) -> ServableVersion | None:
        return max(
            self._versions.get(name, {}).values(), key=lambda each: each.number, default=None
        )

    def _named(self, asked: str | None) -> ServableVersion:
        """The version that a request means, which takes requests."""
        if self._draining:
            raise self._not_ready(self.default)
        key, number = (self.default, None) if asked is None else self._meant(asked)
        version = self._serving(key, number)
        if version is None or _is_stuck(version):
            if number is not None and number not in self._versions.get(key, {}):
                raise ModelNotFound(asked or key)
            raise self._not_ready(key, number)
        return version

    def _meant(self, asked: str) -> tuple[str, int | None]:
        """The model and the version that a name says."""
        if (key := self._key_of(asked)) is not None:
            return key, None
        for separator in "@:":
            name, _, which = asked.rpartition(separator)
            if (key := self._key_of(name)) is None:
                continue
            if separator == "@" and which.isdecimal():
                return key, int(which)
            if separator == ":" and which in self._labels.get(key, {}):
                return key, self._labels[key][which]
        if not any(map(self._serving, self._versions)):
            raise self._not_ready(self.default)  # its name may become known
        raise ModelNotFound(asked)

    def _key_of(self, asked: str) -> str | None:
        """The model that goes by this name: that of its checkpoint, if it has no other."""
        for key in self._versions:
            version = self._serving(key) or self._newest(key)
            name = version.public_name if version is not None else key
            if asked in (name, f"{name}:latest"):
                return key
        return None

    def _status(self, version: ServableVersion | None) -> Status:
        if self._draining:
            return "draining"
        if version is None or version.state is not State.AVAILABLE:
            return "loading"
        return "stuck" if _is_stuck(version) else "ready"

    def _not_ready(self, key: str, number: int | None = None) -> NotReady:
        """Why no version, or not this one, takes requests."""
        if self._draining:
            return NotReady("draining", "the server is shutting down", retry_after_s=5)
        version = self._serving(key, number)
        if version is not None and version.loaded is not None:
            age_s = version.loaded.worker.step_age_s()
            message = f"the device has not answered for {age_s:.0f} s"
            return NotReady("stuck", message, retry_after_s=10)
        version = self._newest(key) if number is None else self._versions[key][number]
        if version is not None and version.state in (State.UNLOADING, State.END):
            message = f"{version} has ended{': ' if version.error else ''}{version.error}"
            return NotReady("unavailable", message, retry_after_s=10)
        done = "" if version is None or version.progress is None else f", {version.progress:.0%}"
        message = f"the model is loading ({_stage(version)}{done})"
        return NotReady("loading", message, retry_after_s=2)


def _is_stuck(version: ServableVersion) -> bool:
    return version.loaded is not None and version.loaded.worker.is_slow()


def _stage(version: ServableVersion | None) -> str:
    if version is None:
        return "starting"
    return f"failed: {version.error}" if version.error else version.stage
