"""A device that never answers: seen, told, and never waited for without end."""

import threading
import time
from typing import Any

import pytest

from gemma_server.engine.engine import Engine
from gemma_server.engine.fake import FakeRunner, fake_tokenizer
from gemma_server.engine.plan import PendingStep, Plan, StepResult
from gemma_server.engine.request import Failed, Request, Token
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.engine.watchdog import StepTimes
from gemma_server.errors import GenerationFailed
from testing.waiting import wait_until

REQUEST = Request(tuple(fake_tokenizer().encode("a text")), 100)


class HangingRunner(FakeRunner):
    """Answers so many plans and then, as a lost device, no more until it is let go."""

    def __init__(self, answered: int) -> None:
        super().__init__(2)
        self._answered = answered
        self.let_go = threading.Event()

    def dispatch(self, plan: Plan) -> Any:
        self._answered -= 1
        pending = super().dispatch(plan)
        return pending if self._answered >= 0 else _Hung(self.let_go, pending)


class _Hung:
    def __init__(self, let_go: threading.Event, pending: PendingStep) -> None:
        self._let_go, self._pending = let_go, pending

    def read(self) -> StepResult:
        self._let_go.wait()
        return self._pending.read()


def test_all_who_wait_are_told_and_the_engine_counts_as_dead() -> None:
    runner, deaths = HangingRunner(3), list[BaseException]()
    scheduler = Scheduler(Limits(2, 64, (16,), max_queue=8, max_queue_tokens=1000))
    engine = Engine(runner, scheduler, deaths.append, step_times=StepTimes(given_s=0.6))
    engine.start()
    handles = engine.submit([REQUEST] * 5)  # two at work, three in the queue
    wait_until(engine.is_slow)
    assert not deaths
    for handle in handles:
        while isinstance(event := handle.next_event(10), Token):
            pass
        assert isinstance(event, Failed)
        assert isinstance(event.error, GenerationFailed)
        assert "has not answered" in event.error.message
    wait_until(lambda: bool(deaths))
    with pytest.raises(GenerationFailed):
        engine.submit([REQUEST])
    runner.let_go.set()
    engine.stop()


def test_a_slow_step_that_ends_is_no_death() -> None:
    runner, deaths = HangingRunner(3), list[BaseException]()
    scheduler = Scheduler(Limits(2, 64, (16,), max_queue=8, max_queue_tokens=1000))
    engine = Engine(runner, scheduler, deaths.append, step_times=StepTimes(given_s=30))
    engine.start()
    [handle] = engine.submit([REQUEST])
    wait_until(lambda: engine.step_age_s() > 0.2)
    runner.let_go.set()
    while isinstance(event := handle.next_event(10), Token):
        pass
    assert not isinstance(event, Failed)
    assert not deaths
    engine.stop()


def test_the_bound_fits_the_model() -> None:
    times = StepTimes()
    assert times.hung_after_s == 30
    times.took(0.01)
    assert times.hung_after_s == 30
    times.took(4.0)
    times.took(1.0)
    assert (times.hung_after_s, round(times.slow_after_s, 2)) == (80, 26.67)
    times.took(600.0)  # longer than a step that is given up: the process was paused
    assert times.hung_after_s == 80
    assert StepTimes(longest_s=2.0).hung_after_s == 40
    assert StepTimes(longest_s=9.0, given_s=5).hung_after_s == 5


def test_an_idle_engine_is_never_slow() -> None:
    scheduler = Scheduler(Limits(1, 64, (16,), max_queue=1, max_queue_tokens=1000))
    deaths: list[BaseException] = []
    engine = Engine(FakeRunner(1), scheduler, deaths.append, step_times=StepTimes(given_s=0.3))
    engine.start()
    [handle] = engine.submit([REQUEST])
    while isinstance(handle.next_event(10), Token):
        pass
    time.sleep(1.2)
    assert not deaths
    assert not engine.is_slow()
    engine.stop()
