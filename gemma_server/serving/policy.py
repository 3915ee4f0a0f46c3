"""Which version to load or unload next: pure functions of what is wanted and what is there.

The rules, and their names, are TensorFlow Serving's: `core/availability_preserving_policy.cc` and
`core/resource_preserving_policy.cc`. They look at one model, and are asked again after each action.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from gemma_server.serving.version import State


class Snapshot(NamedTuple):
    """A version as a policy sees it."""

    number: int
    state: State
    wanted: bool


class Action(NamedTuple):
    """What to do with one version."""

    kind: Literal["load", "unload"]
    number: int


Policy = Callable[[Sequence[Snapshot]], Action | None]


def availability_preserving(versions: Sequence[Snapshot]) -> Action | None:
    """The new version is available before the old one goes: there is memory for both."""
    unwanted = [each.number for each in versions if not each.wanted and _takes_requests(each)]
    wanted = [each for each in versions if each.wanted]
    replaced = not wanted or any(_takes_requests(each) for each in wanted)
    if unwanted and (replaced or len(unwanted) > 1):
        return Action("unload", min(unwanted))
    return _load_of(wanted)


def resource_preserving(versions: Sequence[Snapshot]) -> Action | None:
    """The old version has gone before the new one is loaded: none is available meanwhile."""
    unwanted = [each for each in versions if not each.wanted]
    going = [each.number for each in unwanted if _takes_requests(each)]
    if going:
        return Action("unload", min(going))
    if any(each.state is not State.END for each in unwanted):
        return None
    return _load_of([each for each in versions if each.wanted])


def _takes_requests(version: Snapshot) -> bool:
    return version.state is State.AVAILABLE


def _load_of(wanted: Sequence[Snapshot]) -> Action | None:
    """Load the highest that is new."""
    new = [each.number for each in wanted if each.state is State.START]
    return Action("load", max(new)) if new else None


POLICIES: dict[str, Policy] = {
    "availability": availability_preserving,
    "resource": resource_preserving,
}
