"""What a deadline does to a request, before it has a slot."""

from dataclasses import replace

import pytest

from gemma_server.engine.request import Failed, Finished, Handle, Request
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.errors import DeadlineExceeded
from testing.scheduling import submit_one
from tests.engine.test_scheduler import draw, next_plan
from tests.engine.test_scheduler import make_request as make_any_request


class Clock:
    """Seconds, moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scheduler(clock: Clock) -> Scheduler:
    """One slot, prompts of up to four tokens in one plan."""
    limits = Limits(slots=1, context_length=32, chunks=(4,), max_queue=9, max_queue_tokens=99)
    return Scheduler(limits, clock)


def make_request(prompt: int, max_new_tokens: int = 3) -> Request:
    """One whose prompt has to be read, though it begins like the others."""
    return replace(make_any_request(prompt, max_new_tokens), cache_prompt=False)


def run(scheduler: Scheduler, clock: Clock, step_s: float) -> None:
    """Work until nothing is left, each plan taking so long."""
    while (plan := scheduler.plan()) is not None:
        clock.now += step_s
        scheduler.commit(plan, draw(plan))


def ending(handle: Handle) -> object:
    """The terminal event."""
    while (event := handle.next_event(0)) is not None:
        last = event
    return last


def test_a_server_that_has_measured_nothing_refuses_nobody(scheduler: Scheduler) -> None:
    for _ in range(5):
        submit_one(scheduler, make_request(4), deadline=100.001)


def test_a_batch_that_waits_makes_no_interactive_request_late(
    scheduler: Scheduler, clock: Clock
) -> None:
    submit_one(scheduler, make_request(4))
    run(scheduler, clock, step_s=1.0)  # four tokens a second
    scheduler.submit([make_request(4)] * 5, priority="batch")
    submit_one(scheduler, make_request(4), deadline=clock.now + 1.5)
    with pytest.raises(DeadlineExceeded):
        scheduler.submit([make_request(4)], clock.now + 1.5, priority="batch")


def test_who_cannot_be_read_in_time_is_refused(scheduler: Scheduler, clock: Clock) -> None:
    submit_one(scheduler, make_request(4, 1))
    run(scheduler, clock, 2.0)
    with pytest.raises(DeadlineExceeded, match=r"4\.0 s or more, and 3\.9 s are left"):
        submit_one(scheduler, make_request(8), deadline=clock.now + 3.9)
    submit_one(scheduler, make_request(8), deadline=clock.now + 4.1)


def test_who_waits_for_others_to_be_read_is_refused(scheduler: Scheduler, clock: Clock) -> None:
    submit_one(scheduler, make_request(4, 1))
    run(scheduler, clock, 1.0)
    submit_one(scheduler, make_request(8, 5))
    next_plan(scheduler)  # half of it is read
    late = clock.now + 3.5
    submit_one(scheduler, make_request(8, 5), late)  # 1 s for the one in the slot, 2 s of its own
    with pytest.raises(DeadlineExceeded, match=r"5\.0 s or more"):
        submit_one(scheduler, make_request(8, 5), late)
    submit_one(scheduler, make_request(8, 5))


def test_what_need_not_be_read_refuses_nobody(scheduler: Scheduler, clock: Clock) -> None:
    submit_one(scheduler, make_any_request(8, 1))
    run(scheduler, clock, 1.0)
    submit_one(scheduler, make_any_request(12, 1), deadline=clock.now + 1.1)
    with pytest.raises(DeadlineExceeded, match=r"4\.0 s or more"):
        submit_one(scheduler, make_request(12, 1), deadline=clock.now + 3.9)


def test_long_answers_before_refuse_nobody(scheduler: Scheduler, clock: Clock) -> None:
    """Those in the line may get short ones, and prompts shorter than a chunk are not measured."""
    for prompt_tokens in (1, 4):
        submit_one(scheduler, make_request(prompt_tokens, 20))
        run(scheduler, clock, 1.0)
    quick = [submit_one(scheduler, make_request(1, 1)) for _ in range(8)]
    last = submit_one(scheduler, make_request(1, 1), deadline=clock.now + 8.5)
    run(scheduler, clock, 1.0)
    assert all(ending(handle) == Finished("length", 1) for handle in (*quick, last))


def test_time_without_work_is_none_of_a_chunk(scheduler: Scheduler, clock: Clock) -> None:
    for _ in range(2):
        submit_one(scheduler, make_request(4, 1))
        run(scheduler, clock, 1.0)
        clock.now += 60
    submit_one(scheduler, make_request(8, 1), deadline=clock.now + 2.5)


def test_who_is_late_in_the_line_gets_no_slot(scheduler: Scheduler, clock: Clock) -> None:
    first = submit_one(scheduler, make_request(1, 3))
    late = submit_one(scheduler, make_request(1, 3), deadline=clock.now + 2.5)
    last = submit_one(scheduler, make_request(1, 3), deadline=clock.now + 60)
    run(scheduler, clock, 1.0)
    assert ending(first) == ending(last) == Finished("length", 3)
    assert late.timestamps.admitted is None
    event = ending(late)
    assert isinstance(event, Failed)
    assert isinstance(event.error, DeadlineExceeded)
