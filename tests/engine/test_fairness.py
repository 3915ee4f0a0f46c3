"""Callers share slots and places: nobody is kept out by another, and Retry-After holds."""

import math

import pytest

from gemma_server.engine.fake import FakeRunner
from gemma_server.engine.request import Finished, Handle, Request, Token
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.errors import QueueFull
from testing.scheduling import submit_one

STEP_S = 0.1
SLOTS, PLACES = 4, 16
KNOWN_S = 10.0  # by then it is known how long requests take
REQUEST = Request((2, 300, 301), 10)


class Machine:
    """A scheduler on the fake, whose steps take simulated time."""

    def __init__(self, slots: int = SLOTS, places: int = PLACES) -> None:
        self.now = 0.0
        limits = Limits(slots, 64, (16,), max_queue=places, max_queue_tokens=10_000)
        self.scheduler = Scheduler(limits, lambda: self.now)
        self._runner = FakeRunner(slots)

    def step(self) -> None:
        plan = self.scheduler.plan()
        self.now += STEP_S
        if plan is not None:
            self.scheduler.commit(plan, self._runner.dispatch(plan).read())


def full_machine() -> Machine:
    """With one request in its only slot, and another in the only place."""
    machine = Machine(slots=1, places=1)
    for name in ("at work", "waits"):
        submit_one(machine.scheduler, REQUEST, caller=name)
        machine.step()
    return machine


class Client:
    """Keeps so many requests going; comes back when it is told, or at once whatever it is told."""

    def __init__(self, name: str, requests: int, *, obeys: bool) -> None:
        self.name, self.answers, self.refusals, self.broken_promises = name, 0, 0, 0
        self._requests, self._obeys = requests, obeys
        self._going: list[Handle] = []
        self._next_at = -math.inf
        self._told = False

    def _submit(self, machine: Machine) -> Handle:
        return submit_one(
            machine.scheduler, REQUEST, caller=self.name, returns=not self.name.startswith("push")
        )

    def act(self, machine: Machine) -> None:
        for handle in list(self._going):
            while isinstance(event := handle.next_event(0), Token):
                pass
            if isinstance(event, Finished):
                self._going.remove(handle)
                self.answers += 1
        while len(self._going) < self._requests and machine.now >= self._next_at:
            try:
                self._going.append(self._submit(machine))
                self._told = False
            except QueueFull as error:
                self.refusals += 1
                self.broken_promises += self._told and machine.now > KNOWN_S
                if self._obeys:
                    self._told, self._next_at = True, machine.now + error.retry_after_s
                return


def run(clients: list[Client], seconds: float) -> Machine:
    machine = Machine()
    while machine.now < seconds:
        for client in clients:
            client.act(machine)
        machine.step()
    return machine


def test_a_caller_with_many_requests_keeps_no_other_out() -> None:
    greedy, modest = Client("greedy", 50, obeys=False), Client("modest", 1, obeys=True)
    run([greedy, modest], 120)
    assert modest.answers > 20
    assert greedy.answers > 300  # slots were never idle for it
    assert modest.broken_promises == 0


def test_callers_who_all_come_back_when_told_find_room() -> None:
    clients = [Client(str(number), 1, obeys=True) for number in range(40)]
    run(clients, 120)
    assert sum(client.refusals for client in clients) > 100
    assert [client.broken_promises for client in clients] == [0] * 40
    answers = sorted(client.answers for client in clients)
    assert answers[0] > 0.6 * answers[-1]


def test_among_many_connections_that_push_each_gets_its_share() -> None:
    pushing = [Client(f"push {number}", 1, obeys=False) for number in range(50)]
    modest = Client("modest", 1, obeys=True)
    run([*pushing, modest], 240)
    assert modest.answers > 0.4 * sum(client.answers for client in pushing) / len(pushing)
    assert modest.broken_promises == 0


def test_the_work_done_is_the_same_however_many_are_refused() -> None:
    """Places that are kept for somebody leave no slot idle."""
    alone = Client("alone", 20, obeys=False)
    run([alone], 60)
    crowd = [Client(str(number), 1, obeys=True) for number in range(60)]
    run(crowd, 60)
    assert sum(client.answers for client in crowd) > 0.9 * alone.answers


def test_slots_go_to_callers_in_turn_and_each_keeps_its_order() -> None:
    machine = Machine(slots=1, places=20)
    handles = {name: [] for name in "ab"}  # type: dict[str, list[Handle]]
    for name, count in (("a", 5), ("b", 2)):
        handles[name] = machine.scheduler.submit([REQUEST] * count, caller=name)
    admitted: list[str] = []
    while len(admitted) < 7:
        machine.step()
        for name in "ab":
            begun = sum(handle.timestamps.admitted is not None for handle in handles[name])
            admitted += name * (begun - admitted.count(name))
    assert "".join(admitted) == "abab" + "aaa"
    for name in "ab":
        moments = [handle.timestamps.admitted or 0.0 for handle in handles[name]]
        assert moments == sorted(moments)


def test_a_promise_that_is_not_taken_up_ends() -> None:
    machine = full_machine()
    with pytest.raises(QueueFull):
        submit_one(machine.scheduler, REQUEST, caller="never comes back")
    for _ in range(14):  # the first has ended, the second has its slot: a place is free
        machine.step()
    with pytest.raises(QueueFull):
        submit_one(machine.scheduler, REQUEST, caller="another")
    machine.now += 10
    submit_one(machine.scheduler, REQUEST, caller="another")


def test_several_requests_at_once_are_promised_as_many_places() -> None:
    machine = Machine(slots=1, places=4)
    machine.scheduler.submit([REQUEST] * 5, caller="first")
    machine.step()
    with pytest.raises(QueueFull) as refused:
        machine.scheduler.submit([REQUEST] * 4, caller="batch")
    until = machine.now + refused.value.retry_after_s
    while machine.now < until:
        machine.step()
        with pytest.raises(QueueFull):
            submit_one(machine.scheduler, REQUEST, caller="pushes")
    assert len(machine.scheduler.submit([REQUEST] * 4, caller="batch")) == 4


def test_callers_who_never_come_back_keep_nobody_out_for_long() -> None:
    """Each request over a connection of its own: promises are made to names that are gone."""
    machine = Machine(slots=1, places=4)
    machine.scheduler.submit([REQUEST] * 5, caller="first")
    for number in range(100):
        with pytest.raises(QueueFull):
            submit_one(machine.scheduler, REQUEST, caller=f"gone {number}")
    while machine.scheduler.active or machine.scheduler.queued:
        machine.step()
    submit_one(machine.scheduler, REQUEST, caller="gets the free slot")
    machine.now += 10
    assert len(machine.scheduler.submit([REQUEST] * 4, caller="gets all places")) == 4


def test_tokens_are_promised_too() -> None:
    limits = Limits(1, 64, (16,), max_queue=20, max_queue_tokens=40)
    now = 0.0
    scheduler = Scheduler(limits, lambda: now)
    runner = FakeRunner(1)
    scheduler.submit([Request(tuple([2] * 10), 1)] * 5, caller="first")
    long, short = Request(tuple([2] * 30), 1), Request((2, 2, 2), 1)
    with pytest.raises(QueueFull) as refused:
        submit_one(scheduler, long, caller="long")
    until = now + refused.value.retry_after_s
    while now < until:
        plan = scheduler.plan()
        now += STEP_S
        if plan is not None:
            scheduler.commit(plan, runner.dispatch(plan).read())
        if scheduler.active:  # else there is a free slot, for anybody
            with pytest.raises(QueueFull):
                submit_one(scheduler, Request(tuple([2] * 11), 1), caller="pushes")
    submit_one(scheduler, short, caller="another")
    submit_one(scheduler, long, caller="long")


def test_more_than_the_queue_ever_has_is_promised_to_nobody() -> None:
    machine = Machine(slots=4, places=2)
    machine.scheduler.submit([REQUEST] * 4, caller="first")
    machine.step()
    with pytest.raises(QueueFull):
        machine.scheduler.submit([REQUEST] * 5, caller="batch")
    assert len(machine.scheduler.submit([REQUEST] * 2, caller="another")) == 2


def test_a_caller_that_cannot_come_back_is_promised_nothing() -> None:
    machine = full_machine()
    with pytest.raises(QueueFull):
        submit_one(machine.scheduler, REQUEST, caller="a connection", returns=False)
    for _ in range(14):  # the first has ended, the second has its slot: a place is free
        machine.step()
    submit_one(machine.scheduler, REQUEST, caller="another")
