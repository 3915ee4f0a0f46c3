"""Carries out what is wanted: loads versions, one at a time, and unloads them.

After TensorFlow Serving's `core/aspired_versions_manager.cc`: a thread asks the source which
versions are wanted, and a policy what to do next. Models that nobody needs are not in memory.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from gemma_server.console import say
from gemma_server.errors import GenerationFailed, ModelLoadError
from gemma_server.serving.engines import OnDeath
from gemma_server.serving.metrics import Reason
from gemma_server.serving.model import LoadedModel, OpenedModel
from gemma_server.serving.policy import Policy, Snapshot, availability_preserving
from gemma_server.serving.registry import Registry
from gemma_server.serving.room import make_room
from gemma_server.serving.served_model import ServedModel
from gemma_server.serving.source import Source, SourceFailed, Wanted, WantedModel
from gemma_server.serving.version import ServableVersion, State

logger = logging.getLogger(__name__)

_LOOK_S = 0.1
# A version counts once two polls have found it the same. At the start, and when told to look, they
# follow each other so soon.
_SETTLE_S = 0.5
RETRIES = 3  # of a load that failed, or of an engine that died
RETRY_S = 10.0  # before the first of them; each later one waits twice as long
_LAST_ANSWERS_S = 5.0  # of requests whose engine was stopped


class Loader(Protocol):
    """How a version is loaded, and its memory given back."""

    def open(self, version: ServableVersion) -> OpenedModel:
        """Find out what it is and what it needs.

        Raises:
            ModelLoadError: it cannot be opened; the text says why.
        """
        ...

    def load(self, version: ServableVersion, on_death: OnDeath) -> LoadedModel:
        """Load what was opened, and have it answer what it must answer before it takes requests.

        Raises:
            ModelLoadError: it cannot be loaded; the text says why.
        """
        ...

    def unloaded(self) -> None:
        """Nothing refers to a version any more: give its memory back."""
        ...


def in_a_thread(work: Callable[[], None]) -> None:
    """Do the work beside everything else."""
    threading.Thread(target=work, name="loader", daemon=True).start()


class Manager:
    """Keeps the versions in `registry` as the source wants them.

    `on_death` is called when the process cannot go on: its device hangs. `poll_s` is how often the
    source is asked; 0: only at the start and after `poll_soon`.
    """

    def __init__(
        self,
        registry: Registry,
        source: Source,
        loader: Loader,
        on_death: OnDeath,
        *,
        poll_s: float = 0.0,
        drain_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:
        self._registry = registry
        self._source, self._loader = source, loader
        self._on_death = on_death
        self._poll_s, self._drain_s = poll_s, drain_s
        self._clock, self._start = clock, start
        self._wanted: Mapping[str, WantedModel] = {}
        self._first = registry.default
        self._poll_at = clock()
        self._quick_polls = 2  # that are left
        self._told_to_poll = threading.Event()
        self._poll_errors: set[str] = set()  # that have been told
        self._loads = False  # a version is being loaded
        self._stopping = threading.Event()

    def run(self) -> None:
        """Go on until `stop`, whatever happens: without it no version would change any more."""
        while not self._stopping.wait(_LOOK_S):
            try:
                self.step()
            except Exception:
                logger.exception("versions cannot be managed; tried again in %.0f s", RETRY_S)
                self._stopping.wait(RETRY_S)

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping.set()

    def poll_soon(self) -> None:
        """Ask the source, whatever the time, and try again what has failed; a signal handler may
        call this."""
        self._told_to_poll.set()

    def step(self) -> None:
        """Ask the source if it is time to, then begin what is to be done."""
        if self._told_to_poll.is_set():
            self._told_to_poll.clear()
            self._poll_at, self._quick_polls = self._clock(), 2
            self._forgive()
        if self._clock() >= self._poll_at:
            self._poll()
        self._retry()
        self._want_all()
        self._expire()
        self._act()
        self._set_names()

    def _poll(self) -> None:
        self._quick_polls = max(0, self._quick_polls - 1)
        wait_s = min(_SETTLE_S, self._poll_s or _SETTLE_S) if self._quick_polls else self._poll_s
        self._poll_at = self._clock() + wait_s if wait_s else math.inf
        try:
            self._wanted, self._first = self._source.poll()
            errors = {model.error for model in self._wanted.values() if model.error}
        except SourceFailed as error:
            errors = {str(error)}
        if errors:
            self._registry.metrics.poll_failed()
        for each in errors - self._poll_errors:
            logger.error("%s; what was served before is served on", each)
        self._poll_errors = errors
        for name, model in self._wanted.items():
            self._registry.govern(name, model.residency, model.weights)

    def _forgive(self) -> None:
        """Try again what has failed: what it needs may be there now."""
        for version in self._registry.versions():
            if version.error:
                version.failures, version.retry_at = 0, self._clock()

    def _want_all(self) -> None:
        for name, model in self._wanted.items():
            for number, wanted in model.versions.items():
                self._want(name, number, wanted, model.options)

    def _want(self, name: str, number: int, wanted: Wanted, options: Mapping[str, Any]) -> None:
        """Make the version new, unless it is there, or has failed with these very files."""
        known = self._registry.version(name, number)
        if known is not None:
            failed_so = bool(known.error) and known.signature == wanted.signature
            if known.state is not State.END or failed_so:
                return
        version = ServableVersion(name, number, wanted.path, options, wanted.signature)
        self._registry.add(version)

    def _retry(self) -> None:
        for version in self._registry.versions():
            if version.retry_at is None or self._clock() < version.retry_at:
                continue
            if not self._is_wanted(version):
                version.retry_at = None
                continue
            self._registry.add(version.again())

    def _is_wanted(self, version: ServableVersion) -> bool:
        model = self._wanted.get(version.name)
        return model is not None and version.number in model.versions

    def _expire(self) -> None:
        """Dismiss the models that nobody has asked for as long as they are kept."""
        for model in self._registry.served():
            if model.expires_at() <= self._clock():
                text = f"nobody has asked for it for {model.keep_alive_s:.0f} s"
                self._dismiss(model.name, "expired", text)

    def _act(self) -> None:
        """Begin what the policies say: any number of unloads, and one load at a time."""
        loads = []
        for model in self._registry.served():
            versions = model.versions.copy()
            for each in versions.values():
                if each.state is State.START and not self._is_wanted(each):
                    self._registry.to_end(each)
            action = self._policy_of(model.name)(
                [
                    Snapshot(n, each.state, self._is_wanted(each) and model.is_needed)
                    for n, each in versions.items()
                ]
            )
            states = {each.state for each in versions.values()}
            if action is None:
                if model.name not in self._wanted and states <= {State.END}:
                    self._registry.forget(model.name)
            elif action.kind == "unload":
                self._begin_unload(versions[action.number])
            elif State.UNLOADING not in states:  # that one's memory is not back
                loads.append((model, versions[action.number]))
        if loads and not self._loads:
            self._go_on_with(*min(loads, key=lambda load: load[0].needed_at))

    def _policy_of(self, name: str) -> Policy:
        return self._wanted[name].policy if name in self._wanted else availability_preserving

    def _go_on_with(self, model: ServedModel, version: ServableVersion) -> None:
        """Open a version, or load it once there is room for it."""
        if version.opened is None:
            self._begin(lambda: self._open(version))
            return
        going = [
            each
            for each in model.versions.values()
            if each.state is State.AVAILABLE and not self._is_wanted(each)
        ]
        models, now = self._registry.served(), self._clock()
        step = make_room(version, going, models, self._registry.memory_limit, now)
        if step.kind == "load":
            self._registry.to_loading(version)
            self._begin(lambda: self._load(version))
        elif step.kind == "refuse":
            logger.error("%s is not loaded: %s", version, step.reason)
            version.failures = RETRIES  # it would not fit the next time either
            self._failed(version, step.reason)
        elif step.kind == "later":
            say(f"{step.reason}: it is loaded when it is asked for")
            self._registry.dismiss_if(model.name, idle=False)
        elif step.kind == "replace":
            say(f"{step.reason}: the older version goes first")
            for each in going:
                self._begin_unload(each)
        elif step.kind == "dismiss":
            self._dismiss(step.who, "evicted", step.reason)
        elif step.kind == "drain":
            self._dismiss(step.who, "evicted", step.reason, drains=True)
        else:
            version.at("waiting for memory")

    def _begin(self, work: Callable[[], None]) -> None:
        """Do the one thing that is done at a time."""
        self._loads = True

        def alone() -> None:
            try:
                work()
            finally:
                self._loads = False

        self._start(alone)

    def _dismiss(self, name: str, why: Reason, text: str, *, drains: bool = False) -> None:
        """Unload a model if it is idle, or, where it `drains`, once its requests have ended."""
        patience_s = None if drains else self._drain_s
        leaving = self._registry.dismiss_if(name, idle=not drains)
        if leaving:
            say(f"{name} leaves memory: {text}")
            self._registry.metrics.dismissed(name, why)
        for version in leaving:
            self._start(partial(self._unload, version, patience_s))

    def _begin_unload(self, version: ServableVersion) -> None:
        self._registry.to_unloading(version)
        self._start(partial(self._unload, version, self._drain_s))

    def _set_names(self) -> None:
        """Labels, and which model is the first: that changes once the new one takes requests."""
        first = self._registry.model(self._first)
        if (first is not None and first.answers) or self._registry.first() is None:
            self._registry.default = self._first
        for name, model in self._wanted.items():
            self._registry.set_labels(name, model.labels)

    def _open(self, version: ServableVersion) -> None:
        try:
            opened = self._loader.open(version)
        except Exception as error:
            self._cannot_load(version, error)
            return
        version.bytes, version.opened = opened.needs_bytes, opened

    def _load(self, version: ServableVersion) -> None:
        began = self._clock()
        try:
            loaded = self._loader.load(version, lambda error: self._died(version, error))
        except Exception as error:
            self._cannot_load(version, error)
            return
        if version.state is not State.LOADING:  # it died already
            loaded.worker.stop()
            return
        version.failures, version.bytes = 0, loaded.memory_bytes
        self._registry.to_available(version, loaded, self._clock() - began)
        say(f"{version} takes requests")

    def _cannot_load(self, version: ServableVersion, error: Exception) -> None:
        known = isinstance(error, ModelLoadError)
        logger.error("%s cannot be loaded: %s", version, error, exc_info=not known)
        self._failed(version, str(error) if known else f"{type(error).__name__}: {error}")
        self._loader.unloaded()

    def _failed(self, version: ServableVersion, error: str) -> None:
        version.failures += 1
        if version.failures <= RETRIES:
            version.retry_at = self._clock() + RETRY_S * 2 ** (version.failures - 1)
        self._registry.to_end(version, error)

    def _unload(self, version: ServableVersion, patience_s: float | None) -> None:
        say(f"{version} takes no more requests")
        loaded = version.loaded
        self._registry.wait_until_free(version, patience_s)
        if loaded is not None:
            loaded.worker.stop()
            self._registry.wait_until_free(version, _LAST_ANSWERS_S)
        version.loaded = loaded = None
        self._loader.unloaded()  # before END, which says that the memory is back
        self._registry.to_end(version)
        say(f"{version} is unloaded")

    def _died(self, version: ServableVersion, error: BaseException) -> None:
        """An engine's death is its version's; that of the device is everybody's."""
        if isinstance(error, GenerationFailed):
            self._on_death(error)
            return
        logger.critical("the engine of %s died", version, exc_info=error)
        self._failed(version, f"its engine died: {type(error).__name__}: {error}")
        self._start(self._loader.unloaded)
