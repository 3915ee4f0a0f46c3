"""The cases of TensorFlow Serving's tests of its two policies, by their names there."""

from collections.abc import Sequence

import pytest

from gemma_server.serving.policy import (
    Action,
    Policy,
    Snapshot,
    availability_preserving,
    resource_preserving,
)
from gemma_server.serving.version import State

START, LOADING, READY, GOING, END = State
WANTED, NOT = True, False


def load(number: int) -> Action:
    return Action("load", number)


def unload(number: int) -> Action:
    return Action("unload", number)


AVAILABILITY = {
    "unload first non-aspired when nothing is aspired": ([(1, READY, NOT)], unload(1)),
    "lowest first": ([(2, READY, NOT), (1, READY, NOT), (3, READY, WANTED)], unload(1)),
    "first load": ([(1, START, WANTED)], load(1)),
    "highest first": ([(1, START, WANTED), (3, START, WANTED), (2, START, WANTED)], load(3)),
    "load before unload": ([(1, READY, NOT), (2, START, WANTED)], load(2)),
    "unload once the new one is ready": ([(1, READY, NOT), (2, READY, WANTED)], unload(1)),
    "keep the old one while the new one loads": ([(1, READY, NOT), (2, LOADING, WANTED)], None),
    "aspire error, don't unload": ([(1, READY, NOT), (2, END, WANTED)], None),
    "of two old ones one goes": (
        [(1, READY, NOT), (2, READY, NOT), (3, LOADING, WANTED)],
        unload(1),
    ),
    "both are wanted": ([(1, READY, WANTED), (2, READY, WANTED)], None),
    "nothing is left": ([(1, END, NOT)], None),
    "none": ([], None),
    "back to the smaller number": ([(1, START, WANTED), (2, READY, NOT)], load(1)),
    "not aspired and not ready": ([(1, GOING, NOT), (2, START, WANTED)], load(2)),
}
RESOURCE = {
    "unload first": ([(1, READY, NOT), (2, START, WANTED)], unload(1)),
    "wait while it goes": ([(1, GOING, NOT), (2, START, WANTED)], None),
    "wait while it loads": ([(1, LOADING, NOT), (2, START, WANTED)], None),
    "load once it has gone": ([(1, END, NOT), (2, START, WANTED)], load(2)),
    "highest first": ([(1, START, WANTED), (2, START, WANTED)], load(2)),
    "nothing to do": ([(2, READY, WANTED), (1, END, NOT)], None),
    "an error counts as gone": ([(1, END, NOT), (2, END, WANTED), (3, START, WANTED)], load(3)),
}
CASES = [
    *((availability_preserving, name, *case) for name, case in AVAILABILITY.items()),
    *((resource_preserving, name, *case) for name, case in RESOURCE.items()),
]


@pytest.mark.parametrize(
    ("policy", "versions", "action"),
    [pytest.param(policy, *case, id=name) for policy, name, *case in CASES],
)
def test_what_comes_next(
    policy: Policy, versions: Sequence[tuple[int, State, bool]], action: Action | None
) -> None:
    assert policy([Snapshot(*version) for version in versions]) == action
