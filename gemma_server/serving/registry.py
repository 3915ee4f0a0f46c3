"""All models of this process, and the one place where a version changes its state."""

import math
import threading
import time
from collections.abc import Callable, Mapping

from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import LoadedModel
from gemma_server.serving.residency import Residency
from gemma_server.serving.served_model import ServedModel
from gemma_server.serving.version import ServableVersion, State


class Registry:
    """Models by the names that their operator gave them. `changed` guards all of it, and tells of
    every change. `default` is the model that answers a request that names none."""

    def __init__(
        self, default: str, is_ready: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        self.metrics = Metrics(self.served, is_ready)
        self.default = default
        self.memory_limit = math.inf  # bytes that all versions may take together, once known
        self.clock = clock
        self.changed = threading.Condition()
        self._models: dict[str, ServedModel] = {}

    def served(self) -> list[ServedModel]:
        """All models, in the order in which they came."""
        with self.changed:
            return list(self._models.values())

    def model(self, name: str) -> ServedModel | None:
        """The one that is known by this name."""
        with self.changed:
            return self._models.get(name)

    def first(self) -> LoadedModel | None:
        """What of the first model takes requests, if anything does."""
        with self.changed:
            model = self._models.get(self.default)
            version = None if model is None else model.serving()
            return None if version is None else version.loaded

    def versions(self, name: str | None = None) -> list[ServableVersion]:
        """Those of one model, or of all."""
        with self.changed:
            models = self._models.values()
            every = (each for model in models for each in model.versions.values())
            return [each for each in every if name in (None, each.name)]

    def version(self, name: str, number: int) -> ServableVersion | None:
        """The one of this name and number."""
        with self.changed:
            model = self._models.get(name)
            return None if model is None else model.versions.get(number)

    def govern(self, name: str, residency: Residency, weights: Mapping[int, int]) -> None:
        """Hold a model to what its operator says; it is known from now on."""
        with self.changed:
            self._model(name).govern(residency, weights)

    def set_labels(self, name: str, labels: Mapping[str, int]) -> None:
        """Give a model these labels, and no others. One that points to a version that does not take
        requests stays where it was until that does, unless no version does."""
        with self.changed:
            model = self._model(name)
            serves = model.serving() is not None
            wanted = {
                label: number if model.serving(number) or not serves else model.labels.get(label)
                for label, number in labels.items()
            }
            model.labels = {label: number for label, number in wanted.items() if number is not None}

    def add(self, version: ServableVersion) -> None:
        """A version is wanted. It takes the place of one of its number that has ended."""
        with self.changed:
            self._model(version.name).add(version)

    def forget(self, name: str) -> None:
        """A model is no longer known."""
        with self.changed:
            self._models.pop(name, None)
            self.changed.notify_all()

    def adopt(self, loaded: LoadedModel) -> ServableVersion:
        """Serve what is loaded already, as the first model."""
        version = ServableVersion(self.default)
        self.add(version)
        self.to_available(version, loaded)
        return version

    def to_loading(self, version: ServableVersion) -> None:
        """It is being loaded."""
        self._to(version, State.LOADING)

    def to_available(
        self, version: ServableVersion, loaded: LoadedModel, load_s: float = 0.0
    ) -> None:
        """It takes requests from now on; it has taken so many seconds to load."""
        version.at("ready", 1.0)
        version.loaded, version.opened = loaded, None
        self.metrics.loaded(version.public_name, load_s)
        with self.changed:
            model = self._model(version.name)
            model.is_woken, model.used_at = False, self.clock()
            self._to(version, State.AVAILABLE)

    def to_unloading(self, version: ServableVersion) -> None:
        """It takes no more requests; those that it has go on."""
        self._to(version, State.UNLOADING)

    def to_end(self, version: ServableVersion, error: str = "") -> None:
        """It is gone; with an error it has failed."""
        if error:
            self.metrics.failed(version.public_name)
        with self.changed:
            version.error, version.loaded, version.opened = error, None, None
            self._to(version, State.END)

    def dismiss_if(self, name: str, *, idle: bool) -> list[ServableVersion]:
        """Make the versions of a model leave: they are UNLOADING from now on, and it comes back
        when it is asked for. None of them does if it has to be `idle` and is not."""
        with self.changed:
            model = self._models.get(name)
            if model is None or (idle and not model.is_idle):
                return []
            leaving = model.dismiss()
            for version in leaving:
                self._to(version, State.UNLOADING)
            return leaving

    def wait_until_free(self, version: ServableVersion, timeout_s: float | None) -> bool:
        """Wait until no request holds it; False if that takes longer. None: however long."""
        with self.changed:
            return self.changed.wait_for(lambda: version.leases == 0, timeout_s)

    def wait_for_a_change(self, timeout_s: float) -> None:
        """Wait until a version is in another state."""
        with self.changed:
            self.changed.wait(timeout_s)

    def wall_time(self, at: float) -> float:
        """Seconds since 1970 at a time on the clock of the models."""
        return time.time() + at - self.clock()

    def _to(self, version: ServableVersion, state: State) -> None:
        with self.changed:
            version.state = state
            self.changed.notify_all()

    def _model(self, name: str) -> ServedModel:
        """The one that is known by this name, from now on if it was not."""
        now = self.clock()
        new = ServedModel(name, needed_at=now, used_at=now)
        return self._models.setdefault(name, new)
