"""Scheduling by hand: the clock is a number, the device is the test."""

from dataclasses import replace
from typing import Any

import pytest

from gemma_server.engine.plan import Plan, StepResult
from gemma_server.engine.request import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Handle,
    Logprobs,
    PromptLogprobs,
    Request,
    SamplingParams,
    Token,
)
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.errors import (
    ContextLengthExceeded,
    EmptyPrompt,
    GenerationFailed,
    Overloaded,
)
from testing.scheduling import submit_one

STOP = 1


def make_scheduler(**changes: Any) -> Scheduler:
    limits: dict[str, Any] = {"slots": 2, "context_length": 32, "chunks": (4,)}
    queue = {"max_queue": 3, "max_queue_tokens": 50}
    return Scheduler(Limits(**{**limits, **queue, **changes}), clock=lambda: 0.0)


def make_request(prompt: int, max_new_tokens: int = 3) -> Request:
    return Request(tuple(range(10, 10 + prompt)), max_new_tokens, stop_ids=frozenset({STOP}))


def next_plan(scheduler: Scheduler) -> Plan:
    plan = scheduler.plan()
    assert plan is not None
    return plan


def result(first: int | None, *rows: list[int]) -> StepResult:
    """What a device returns that drew these."""
    drawn = tuple(tuple(map(Token, row)) for row in rows)
    return StepResult(None if first is None else Token(first), drawn)


def draw(plan: Plan, token: int = 7) -> StepResult:
    """Draw `token` wherever one is drawn."""
    last = plan.prefill is not None and plan.prefill.sampling is not None
    rows = [[token] * plan.steps] * len(plan.decode)
    return result(token if last else None, *rows)


def step(scheduler: Scheduler, token: int = 7) -> Plan:
    """Plan, draw, commit."""
    plan = next_plan(scheduler)
    scheduler.commit(plan, draw(plan, token))
    return plan


def events(handle: Handle) -> list[Event]:
    found = []
    while (event := handle.next_event(0)) is not None:
        found.append(event)
    return found


def test_a_prompt_is_read_in_chunks_and_then_decoded_token_by_token() -> None:
    scheduler = make_scheduler()
    handle = submit_one(scheduler, make_request(prompt=6))
    first, second, third, fourth = (step(scheduler) for _ in range(4))
    assert first.prefill is not None
    assert (first.prefill.offset, first.prefill.token_ids) == (0, (10, 11, 12, 13))
    assert first.prefill.sampling is None  # more of the prompt follows
    assert second.prefill is not None
    assert (second.prefill.offset, second.prefill.token_ids) == (4, (14, 15))
    assert second.prefill.sampling is not None
    assert [row.position for row in third.decode] == [6]
    assert [row.position for row in fourth.decode] == [7]
    assert scheduler.plan() is None
    assert events(handle) == [Token(7), Token(7), Token(7), Finished("length", 3)]


def test_a_stop_token_ends_the_answer_and_is_counted_but_not_shown() -> None:
    scheduler = make_scheduler()
    handle = submit_one(scheduler, make_request(prompt=2))
    step(scheduler)
    step(scheduler, token=STOP)
    assert events(handle) == [Token(7), Finished("stop", 2, Token(STOP))]
    assert scheduler.active == 0


def test_others_decode_while_a_long_prompt_is_read() -> None:
    scheduler = make_scheduler()
    submit_one(scheduler, make_request(prompt=2, max_new_tokens=20))
    step(scheduler)
    submit_one(scheduler, make_request(prompt=9))
    plan = step(scheduler)
    assert plan.prefill is not None
    assert [row.slot for row in plan.decode] == [0]


def test_prompts_take_turns_to_be_read() -> None:
    """A short one does not wait for the end of a long one, nor that for ever for short ones."""
    scheduler = make_scheduler(slots=3)
    for tokens in (20, 8):
        submit_one(scheduler, make_request(tokens, max_new_tokens=1))
    order = [step(scheduler).prefill for _ in range(5)]
    assert [chunk.slot for chunk in order if chunk is not None] == [0, 1, 0, 1, 0]
    order = []
    for _ in range(4):
        submit_one(scheduler, make_request(prompt=1, max_new_tokens=1))
        order.append(step(scheduler).prefill)
    assert [chunk.slot == 0 for chunk in order if chunk is not None] == [True, False] * 2


def test_a_freed_slot_goes_to_the_next_in_line_at_once() -> None:
    scheduler = make_scheduler(slots=1)
    first, second = (
        submit_one(scheduler, make_request(prompt=1, max_new_tokens=1)) for _ in range(2)
    )
    step(scheduler)
    plan = step(scheduler)
    assert plan.prefill is not None
    assert events(first) == [Token(7), Finished("length", 1)]
    assert events(second) == [Token(7), Finished("length", 1)]


def test_an_answer_ends_with_length_where_the_context_is_full() -> None:
    scheduler = make_scheduler(context_length=16)
    handle = submit_one(scheduler, make_request(prompt=14, max_new_tokens=100))
    while scheduler.active or scheduler.queued:
        step(scheduler)
    assert events(handle)[-1] == Finished("length", 2)


def test_the_longest_prompt_leaves_room_for_one_token() -> None:
    scheduler = make_scheduler(context_length=16)
    submit_one(scheduler, make_request(prompt=15))
    with pytest.raises(ContextLengthExceeded) as error:
        submit_one(scheduler, make_request(prompt=16))
    assert (error.value.prompt_tokens, error.value.limit) == (16, 15)
    with pytest.raises(EmptyPrompt):
        submit_one(scheduler, Request((), 1))


def test_the_line_is_bounded_in_requests() -> None:
    scheduler = make_scheduler()
    for _ in range(2 + 3):
        submit_one(scheduler, make_request(prompt=1))
    with pytest.raises(Overloaded) as error:
        submit_one(scheduler, make_request(prompt=1))
    assert error.value.retry_after_s >= 1


def test_the_line_is_bounded_in_tokens_but_a_free_slot_takes_any_prompt() -> None:
    scheduler = make_scheduler(slots=1, max_queue_tokens=20)
    submit_one(scheduler, make_request(prompt=30))
    scheduler.plan()
    submit_one(scheduler, make_request(prompt=20))
    with pytest.raises(Overloaded):
        submit_one(scheduler, make_request(prompt=1))


def test_no_line_at_all_still_serves_as_many_as_there_are_slots() -> None:
    scheduler = make_scheduler(max_queue=0)
    for _ in range(2):
        submit_one(scheduler, make_request(prompt=1))
    with pytest.raises(Overloaded):
        submit_one(scheduler, make_request(prompt=1))


@pytest.mark.parametrize("steps_before", [0, 1, 2, 3])
def test_cancelling_frees_the_slot_at_every_stage_and_once(steps_before: int) -> None:
    scheduler = make_scheduler(slots=1)
    handle = submit_one(scheduler, make_request(prompt=6, max_new_tokens=9))
    for _ in range(steps_before):
        step(scheduler)
    scheduler.cancel(handle)
    scheduler.cancel(handle)
    assert (scheduler.active, scheduler.queued) == (0, 0)
    assert [event for event in events(handle) if not isinstance(event, Token)] == [Cancelled()]


def test_a_request_cancelled_during_a_step_gets_nothing_from_it() -> None:
    scheduler = make_scheduler(slots=1)
    gone = submit_one(scheduler, make_request(prompt=1))
    plan = next_plan(scheduler)
    scheduler.cancel(gone)
    heir = submit_one(scheduler, make_request(prompt=1))
    scheduler.commit(plan, result(7))
    assert events(gone) == [Cancelled()]
    assert events(heir) == []


def test_numbers_that_are_not_finite_fail_their_request_alone() -> None:
    scheduler = make_scheduler()
    bad, good = (submit_one(scheduler, make_request(prompt=1)) for _ in range(2))
    step(scheduler)
    step(scheduler)  # bad has drawn 2 tokens, good 1
    scheduler.commit(next_plan(scheduler), result(None, [-1], [7]))
    assert isinstance(events(bad)[-1], Failed)
    assert events(good) == [Token(7), Token(7)]


def test_failing_all_ends_the_waiting_too() -> None:
    scheduler = make_scheduler()
    handles = [submit_one(scheduler, make_request(prompt=1)) for _ in range(4)]
    step(scheduler)
    error = GenerationFailed("gone")
    scheduler.fail_all(error)
    assert [events(handle)[-1] for handle in handles] == [Failed(error)] * 4
    assert scheduler.plan() is None


def test_a_block_s_tokens_are_all_taken_up_to_the_end() -> None:
    scheduler = make_scheduler(steps=4)
    handle = submit_one(scheduler, make_request(prompt=2, max_new_tokens=7))
    plans = [step(scheduler) for _ in range(3)]
    assert [plan.steps for plan in plans] == [1, 4, 4]
    assert [row.position for plan in plans for row in plan.decode] == [2, 6]
    assert scheduler.plan() is None
    assert events(handle) == [Token(7)] * 7 + [Finished("length", 7)]
    assert scheduler.tokens_sampled == 7


def test_what_a_block_draws_behind_an_end_is_surplus() -> None:
    scheduler = make_scheduler(steps=4)
    stopped, broken = (
        submit_one(scheduler, make_request(prompt=1, max_new_tokens=9)) for _ in range(2)
    )
    step(scheduler)
    step(scheduler)
    scheduler.commit(next_plan(scheduler), result(None, [7, STOP, 7, 7], [7, 7, -1, 7]))
    assert events(stopped) == [Token(7), Token(7), Token(7), Finished("stop", 4, Token(STOP))]
    *tokens, failed = events(broken)
    assert (tokens, type(failed)) == ([Token(7)] * 3, Failed)
    assert scheduler.tokens_sampled == 4 + 4


def test_while_a_prompt_is_read_the_others_draw_one_token_at_a_time() -> None:
    scheduler = make_scheduler(steps=4)
    submit_one(scheduler, make_request(prompt=2, max_new_tokens=20))
    step(scheduler)
    assert step(scheduler).steps == 4
    submit_one(scheduler, make_request(prompt=6))
    assert [step(scheduler).steps for _ in range(3)] == [1, 1, 4]


def test_plans_go_on_where_those_in_flight_will_end() -> None:
    """The whole request is planned before any result is in."""
    scheduler = make_scheduler(steps=2)
    handle = submit_one(scheduler, make_request(prompt=6, max_new_tokens=4))
    plans = [next_plan(scheduler) for _ in range(4)]
    chunks = [plan.prefill for plan in plans if plan.prefill is not None]
    assert [(chunk.offset, len(chunk.token_ids)) for chunk in chunks] == [(0, 4), (4, 2)]
    assert [row.position for plan in plans for row in plan.decode] == [6, 8]
    assert scheduler.plan() is None
    assert scheduler.active == 1
    for plan in plans:
        scheduler.commit(plan, draw(plan))
    assert events(handle) == [Token(7)] * 4 + [Finished("length", 4)]
    assert scheduler.active == 0


def test_a_slot_is_handed_out_while_its_old_block_is_in_flight() -> None:
    scheduler = make_scheduler(slots=1, steps=2)
    gone = submit_one(scheduler, make_request(prompt=1, max_new_tokens=9))
    step(scheduler)
    ending, stale = next_plan(scheduler), next_plan(scheduler)
    heir = submit_one(scheduler, make_request(prompt=1, max_new_tokens=9))
    scheduler.commit(ending, draw(ending, STOP))
    first = next_plan(scheduler)
    assert first.prefill is not None
    scheduler.commit(stale, draw(stale))
    assert events(gone) == [Token(7), Finished("stop", 2, Token(STOP))]
    assert events(heir) == []
    scheduler.commit(first, draw(first))
    assert events(heir) == [Token(7)]


def test_without_tokens_wanted_the_prompt_is_read_and_nothing_delivered() -> None:
    scheduler = make_scheduler(slots=1)
    handle = submit_one(scheduler, make_request(prompt=6, max_new_tokens=0))
    heir = submit_one(scheduler, make_request(prompt=1, max_new_tokens=0))
    assert [step(scheduler).decode for _ in range(3)] == [(), (), ()]
    assert events(handle) == events(heir) == [Finished("length", 0)]
    assert (scheduler.tokens_sampled, scheduler.active) == (0, 0)
    broken = submit_one(scheduler, make_request(prompt=1, max_new_tokens=0))
    step(scheduler, token=-1)
    assert [type(event) for event in events(broken)] == [Failed]


def test_a_prompt_s_logprobs_come_chunk_by_chunk_before_the_first_token() -> None:
    scheduler = make_scheduler()
    request = replace(make_request(6, max_new_tokens=1), top_logprobs=2, prompt_logprobs=True)
    handle = submit_one(scheduler, request)
    first, last = next_plan(scheduler), next_plan(scheduler)
    assert [plan.prefill.scored for plan in (first, last) if plan.prefill is not None] == [
        (11, 12, 13, 14),
        (15,),
    ]
    scores = [tuple(Logprobs(-float(n), ()) for n in range(count)) for count in (4, 1)]
    scheduler.commit(first, StepResult(None, (), scores[0]))
    scheduler.commit(last, StepResult(Token(7), (), scores[1]))
    expected = [*map(PromptLogprobs, scores), Token(7), Finished("length", 1)]
    assert events(handle) == expected


def test_the_prompt_s_logprobs_of_a_cancelled_request_go_nowhere() -> None:
    scheduler = make_scheduler(slots=1)
    gone = submit_one(scheduler, make_request(prompt=2))
    plan = next_plan(scheduler)
    scheduler.cancel(gone)
    heir = submit_one(scheduler, make_request(prompt=2))
    next_plan(scheduler)
    scheduler.commit(plan, StepResult(Token(7), (), (Logprobs(-1.0, ()),)))
    assert (events(gone), events(heir)) == ([Cancelled()], [])


def test_stop_ids_are_banned_until_enough_tokens_are_planned() -> None:
    scheduler = make_scheduler(steps=2)
    submit_one(scheduler, replace(make_request(5, max_new_tokens=9), min_tokens=4))
    submit_one(scheduler, make_request(prompt=1))
    chunks = [plan.prefill for plan in (step(scheduler) for _ in range(3))]
    found = [(chunk.banned, chunk.min_tokens) for chunk in chunks if chunk is not None]
    assert found == [((), 0), ((), 0), ((STOP,), 4)]
    rows = [step(scheduler).decode for _ in range(3)]
    assert [row.banned for plan in rows for row in plan if row.slot == 0] == [True, True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_logprobs": 21},
        {"top_logprobs": -1},
        {"prompt_logprobs": True},
        {"sampling": SamplingParams(bias=((3, 1.0),) * 301)},
        {"min_tokens": 1, "stop_ids": frozenset(range(33))},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_there_is_no_request_for_what_a_slot_has_no_room_for(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"at most|needs"):
        replace(make_request(3), **wrong)  # type: ignore[arg-type]
