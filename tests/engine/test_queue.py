"""The queue loses nothing, keeps each caller's order, lets callers take turns, starves no class."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gemma_server.engine.draft import Chance
from gemma_server.engine.priority import BATCH_EVERY, PRIORITIES, Priority
from gemma_server.engine.queue import FairQueue
from gemma_server.engine.request import Handle, Request, Timestamps
from gemma_server.engine.sequence import Sequence

HANDLE = Handle(Request((2,), 1), Timestamps(0.0))
CALLERS = "abc"
TAKE, REMOVE = "take", "remove"
ARRIVALS = st.tuples(st.sampled_from(CALLERS), st.sampled_from(PRIORITIES))
EVENT = ARRIVALS | st.just(TAKE) | st.tuples(st.just(REMOVE), st.integers(0, 9))
EVENTS = st.builds(  # from a queue that is full enough for turns
    lambda first, then: [*first, *then],
    st.lists(ARRIVALS, min_size=12, max_size=40),
    st.lists(EVENT, max_size=40),
)


@dataclass
class Line:
    """A queue, and what is known of it by counting."""

    queue: FairQueue = field(default_factory=FairQueue)
    waiting: list[Sequence] = field(default_factory=list)  # in their order
    came: int = 0

    def append(self, caller: str, priority: Priority) -> None:
        sequence = Sequence(self.came, HANDLE, 1, None, Chance(0.5, 0.1, 0.1), caller, priority)
        self.came += 1
        self.queue.append(sequence)
        self.waiting.append(sequence)

    def remove(self, index: int) -> None:
        if self.waiting:
            self.queue.remove(self.waiting.pop(index % len(self.waiting)))

    def take(self) -> Sequence:
        taken = self.queue.next(Counter())
        self.waiting.remove(taken)
        return taken

    def callers(self, priority: Priority) -> set[str]:
        return {each.caller for each in self.waiting if each.priority == priority}

    def check(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert {each.id for each in self.queue} == {each.id for each in self.waiting}
        for priority in PRIORITIES:
            assert all(each.priority == priority for each in self.queue.of(priority))


def happens(line: Line, event: Any) -> bool:
    """Have an arrival or a removal happen; whether it was one."""
    match event:
        case ("remove", int(index)):
            line.remove(index)
        case (caller, ("interactive" | "batch") as priority):
            line.append(caller, priority)
        case _:
            return False
    return True


@given(EVENTS)
def test_nothing_is_lost_and_each_caller_s_order_is_kept(events: list[Any]) -> None:
    line = Line()
    for event in events:
        if not happens(line, event) and line.waiting:
            before = list(line.waiting)
            taken = line.take()
            alike = [e for e in before if (e.caller, e.priority) == (taken.caller, taken.priority)]
            assert taken is alike[0]
        line.check()
    while line.waiting:
        line.take()
        line.check()


@given(EVENTS)
def test_interactive_ones_go_first_and_no_batch_starves(events: list[Any]) -> None:
    line, batch, both = Line(), list[bool](), list[bool]()
    for event in [*events, *[TAKE] * len(events)]:
        if happens(line, event) or not line.waiting:
            continue
        waits = {priority: bool(line.callers(priority)) for priority in PRIORITIES}
        both.append(all(waits.values()))
        batch.append(line.take().priority == "batch")
        assert waits["batch"] or not batch[-1]
        assert waits["interactive"] or batch[-1]
        if len(both) >= BATCH_EVERY and all(both[-BATCH_EVERY:]):
            assert sum(batch[-BATCH_EVERY:]) == 1


@given(EVENTS)
def test_callers_of_a_class_take_turns(events: list[Any]) -> None:
    """While one waits, no other of its class has two turns."""
    line, turns = Line(), Counter[tuple[str, str, Priority]]()
    for event in [*events, *[TAKE] * len(events)]:
        if not happens(line, event) and line.waiting:
            before = {priority: line.callers(priority) for priority in PRIORITIES}
            taken = line.take()
            for waited in before[taken.priority] - {taken.caller}:
                turns[waited, taken.caller, taken.priority] += 1
                assert turns[waited, taken.caller, taken.priority] == 1
                turns[taken.caller, waited, taken.priority] = 0
        for waiting, other, priority in turns:
            if waiting not in line.callers(priority):
                turns[waiting, other, priority] = 0
