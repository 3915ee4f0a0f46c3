"""A model as it is served: its versions, who waits for it, and whether it is to be in memory."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from gemma_server.serving.residency import Residency
from gemma_server.serving.version import ServableVersion, State

_ENDED = 8  # versions that are remembered after their end
_SHARES = 1 << 64


@dataclass(eq=False)
class ServedModel:
    """Guarded by the lock of `Models`."""

    name: str
    residency: Residency | None = None  # None: it is there for good, nothing loads or unloads it
    versions: dict[int, ServableVersion] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[int, int] = field(default_factory=dict)  # of versions
    is_needed: bool = True  # it is to be in memory
    is_woken: bool = False  # by a request, and has not loaded since
    needed_at: float = 0.0  # on the clock of `Models`, as `used_at`
    used_at: float = 0.0  # when a request last came or ended
    waiting: int = 0  # requests, for it to load
    keep_alive_s: float = math.inf  # as the last request that said so has it
    since: float = field(default_factory=time.time)  # seconds since 1970 when it became known

    @property
    def public_name(self) -> str:
        """The name to ask for it by: that of its checkpoint, if it has no other."""
        version = self.serving() or self.newest
        return self.name if version is None else version.public_name

    @property
    def newest(self) -> ServableVersion | None:
        """The version with the highest number, in whatever state."""
        return max(self.versions.values(), key=lambda each: each.number, default=None)

    def serving(self, number: int | None = None) -> ServableVersion | None:
        """The newest version that takes requests, or this one."""
        able = (each for each in self._in(State.AVAILABLE) if number in (None, each.number))
        return max(able, key=lambda each: each.number, default=None)

    def chosen(self, point: int) -> ServableVersion | None:
        """The version for a request that names none: by the weights of those that take requests,
        if there are any, else the newest. `point` is a number below 2**64: the same point falls to
        the same version, and only those at its border move when its weight changes."""
        able = sorted(self._in(State.AVAILABLE), key=lambda each: each.number)
        weights = [self.weights.get(each.number, 0) for each in able]
        place = point * sum(weights) // _SHARES
        for version, weight in zip(able, weights, strict=True):
            if place < weight:
                return version
            place -= weight
        return self.serving()

    def can_come(self, number: int | None = None) -> bool:
        """Whether it, or this version, answers a request that waits: it is out of memory, or being
        fetched for another request, and that has not failed."""
        if self.residency is None:
            return False
        if self._in(State.AVAILABLE):
            return number is not None and self.versions[number].is_coming
        if not self.is_needed:
            return True
        ended = all(each.state is State.END for each in self.versions.values())
        failed = ended and any(each.error for each in self.versions.values())
        return self.is_woken and not failed

    @property
    def answers(self) -> bool:
        """Whether it takes requests, be it that they wait until it is loaded."""
        return self.can_come() or self.serving() is not None

    @property
    def stays(self) -> bool:
        """It may not leave memory."""
        return self.residency is None or self.residency.pinned

    @property
    def is_idle(self) -> bool:
        """It is in memory, and nobody uses it or waits for it."""
        leases = sum(each.leases for each in self.versions.values())
        loads = self._in(State.LOADING)
        return bool(self._in(State.AVAILABLE)) and not (leases or loads or self.waiting)

    def expires_at(self) -> float:
        """When it leaves if nobody asks for it, on the clock of `Models`."""
        return math.inf if self.stays else self.used_at + self.keep_alive_s

    def add(self, version: ServableVersion) -> None:
        """A version is wanted. It takes the place of one of its number that has ended."""
        self.versions[version.number] = version
        for each in self._in(State.END)[:-_ENDED]:
            del self.versions[each.number]

    def govern(self, residency: Residency, weights: Mapping[int, int]) -> None:
        """Its operator says so, now or anew."""
        before, self.residency, self.weights = self.residency, residency, weights
        if before == residency:
            return
        self.keep_alive_s = residency.keep_alive_s
        self.is_needed = (self.is_needed and before is not None) or not residency.on_request

    def wake(self, now: float) -> None:
        """A request asks for it."""
        if not self.is_needed:
            self.is_needed = self.is_woken = True
            self.needed_at = now

    def forsake(self) -> None:
        """Nobody waits for it any more: a load that has not begun is not begun."""
        if self.is_woken and not self.waiting and not self._in(State.LOADING):
            self.is_needed = self.is_woken = False

    def dismiss(self) -> list[ServableVersion]:
        """It is to leave; the versions that take requests."""
        self.is_needed = self.is_woken = False
        if self.residency is not None:
            self.keep_alive_s = self.residency.keep_alive_s
        return self._in(State.AVAILABLE)

    def _in(self, state: State) -> list[ServableVersion]:
        return [each for each in self.versions.values() if each.state is state]
