"""A manager of models on a fake loader and a fake clock, in one thread."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_server.errors import ModelLoadError
from gemma_server.serving.engines import OnDeath, Wrap
from gemma_server.serving.manager import Manager
from gemma_server.serving.model import LoadedModel
from gemma_server.serving.models import Models
from gemma_server.serving.policy import Policy, availability_preserving
from gemma_server.serving.residency import Residency
from gemma_server.serving.source import SourceFailed, Wanted, WantedModel, WantedModels
from gemma_server.serving.version import ServableVersion, State


class FakeWorker:
    def __init__(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True

    def is_slow(self) -> bool:
        return False

    def step_age_s(self) -> float:
        return 0.0


class FakeModel(LoadedModel):
    def __init__(self, name: str, version: int, memory_bytes: int) -> None:
        vars(self).update(name=name, version=version, memory_bytes=memory_bytes, own=FakeWorker())

    @property
    def worker(self) -> Any:
        return vars(self)["own"]


@dataclass
class FakeOpened:
    needs_bytes: int
    device_bytes: float = math.inf

    def load(self, on_death: OnDeath, wrap: Wrap = lambda runner: runner) -> LoadedModel:
        raise NotImplementedError  # `Life` loads


@dataclass
class FakeClient:
    """Who waits for a model. It has gone after so many looks at it."""

    patience: int
    deadline: float | None = None
    affinity: str = ""
    looks: int = field(default=0, init=False)

    def disconnected(self) -> bool:
        self.looks += 1
        return self.looks > self.patience


class Life:
    """A manager with all that is around it; loads end when the test says so."""

    def __init__(self, policy: Policy = availability_preserving) -> None:
        self.policy = policy
        self.now = 0.0
        self.wanted: dict[str, WantedModel] = {"m": WantedModel({}, policy)}
        self.first = "m"
        self.bytes: dict[str, int] = {}  # that a version of a model needs
        self.failing: dict[int, str] = {}
        self.poll_fails = False
        self.deaths: list[BaseException] = []
        self.on_death: dict[int, OnDeath] = {}
        self.loaded: dict[int, FakeModel] = {}
        self.states: list[tuple[int, State]] = []
        self.pending: list[Callable[[], None]] = []
        self.models = Models("m", clock=lambda: self.now)
        change = self.models.registry._to

        def noted(version: ServableVersion, state: State) -> None:
            self.states.append((version.number, state))
            change(version, state)

        self.models.registry._to = noted  # type: ignore[method-assign]
        # While a request waits, the manager does a step.
        self.models.registry.changed.wait = lambda timeout=None: self.step() or True  # type: ignore[method-assign,func-returns-value]
        self.manager = Manager(
            self.models.registry,
            self,
            self,
            self.deaths.append,
            poll_s=1.0,
            drain_s=0.0,
            clock=lambda: self.now,
            start=self.pending.append,
        )

    # The source and the loader.

    def poll(self) -> WantedModels:
        if self.poll_fails:
            raise SourceFailed("it is gone")
        return WantedModels(dict(self.wanted), self.first)

    def open(self, version: ServableVersion) -> FakeOpened:
        return FakeOpened(self.bytes.get(version.name, 0))

    def load(self, version: ServableVersion, on_death: OnDeath) -> LoadedModel:
        if version.number in self.failing:
            raise ModelLoadError(self.failing[version.number])
        self.on_death[version.number] = on_death
        model = FakeModel(version.name, version.number, self.bytes.get(version.name, 0))
        self.loaded[version.number] = model
        return model

    def unloaded(self) -> None:
        """Nothing to give back."""

    # What a test does.

    def want(self, *numbers: int, signature: str = "") -> None:
        """These versions of the model m, and no others."""
        versions = {number: Wanted(Path(f"/m/{number}"), signature) for number in numbers}
        self.wanted["m"] = WantedModel(versions, self.policy)

    def host(
        self,
        name: str,
        *numbers: int,
        size: int = 0,
        weights: Mapping[int, int] | None = None,
        **residency: Any,
    ) -> None:
        """These versions of a model, which is kept so."""
        self.bytes[name] = size
        versions = {number: Wanted(Path(f"/{name}/{number}")) for number in numbers or (1,)}
        self.wanted[name] = WantedModel(
            versions, self.policy, residency=Residency(**residency), weights=weights or {}
        )

    def begin(self) -> None:
        """A step whose loads and unloads do not end yet; what is to be opened is open."""
        self.now += 1
        self.manager.step()
        if self.manager._loads and not self._in(State.LOADING):
            self.pending.pop()()
            self.manager.step()

    def step(self, seconds: float = 1.0) -> None:
        """One step of the manager, with all of its work to the end."""
        self.now += seconds
        self._do_all()
        if any(each.opened is not None for each in self._in(State.START)):
            self._do_all()

    def settle(self) -> None:
        for _ in range(10):
            self.step()

    def asked(self, name: str | None = None) -> int:
        """The version that answers a request that does not wait."""
        with self.models.resolve_any(name) as loaded:
            return loaded.version

    @contextmanager
    def held(self, name: str, patience: int = 50) -> Any:
        """A request that waits for its model."""
        with ExitStack() as stack:
            yield stack.enter_context(self.models.resolve_any(name, FakeClient(patience)))

    def use(self, name: str) -> int:
        """The version that answers a request that waits for it."""
        with self.held(name) as loaded:
            version: int = loaded.version
        return version

    @property
    def available(self) -> list[int]:
        """Of the model m."""
        return sorted(each.number for each in self._in(State.AVAILABLE) if each.name == "m")

    @property
    def in_memory(self) -> set[str]:
        """The models of which a version takes requests."""
        return {each.name for each in self._in(State.AVAILABLE)}

    def state(self, number: int, name: str = "m") -> State:
        version = self.models.registry.version(name, number)
        assert version is not None
        return version.state

    def _in(self, state: State) -> list[ServableVersion]:
        return [each for each in self.models.registry.versions() if each.state is state]

    def _do_all(self) -> None:
        self.manager.step()
        while self.pending:
            self.pending.pop(0)()
