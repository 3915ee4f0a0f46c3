"""Where prompts are put, what is kept of texts that have ended, and how long chunks are."""

import itertools
import random
from dataclasses import replace

import pytest

from gemma_server.engine.plan import Copy, Plan, StepResult
from gemma_server.engine.prompt_cache import Placement, PromptCache, Text, shared
from gemma_server.engine.request import Request, Token
from gemma_server.engine.scheduler import Limits, Scheduler
from testing.scheduling import submit_one


def text(*parts: tuple[int, int]) -> Text:
    """Runs of ids, each with its first one and its length."""
    return Text(tuple(first + i for first, count in parts for i in range(count)))


CHAT, OTHER, THIRD = text((0, 100)), text((1000, 100)), text((2000, 100))


def longer(beginning: Text, first: int = 5000) -> Text:
    return Text((*beginning.ids, *range(first, first + 50)))


def test_a_conversation_goes_on_where_it_is() -> None:
    cache = PromptCache(slots=3)
    cache.leave(1, CHAT)
    assert cache.place(longer(CHAT), {0, 1, 2}, {}) == Placement(1, 100)
    assert cache.place(longer(CHAT), {0, 2}, {}) == Placement(0, 0)  # it has been taken


def test_who_differs_gets_a_copy_and_the_text_stays() -> None:
    cache = PromptCache(slots=3)
    cache.leave(1, longer(CHAT, 5000))
    placed = cache.place(longer(CHAT, 6000), {0, 1, 2}, {})
    assert placed == Placement(0, 100, (Copy(1, 0, 100),))
    assert cache.place(Text((*longer(CHAT, 5000).ids, 7)), {1, 2}, {}) == Placement(1, 150)
    assert (cache.queries, cache.hits, cache.tokens) == (2, 2, 250)


def test_the_last_token_is_always_read() -> None:
    cache = PromptCache(slots=1)
    cache.leave(0, CHAT)
    assert cache.place(CHAT, {0}, {}) == Placement(0, 99)


def test_a_few_tokens_are_not_worth_a_copy() -> None:
    cache = PromptCache(slots=2)
    cache.leave(1, longer(text((0, 20))))
    assert cache.place(longer(text((0, 20)), 7000), {0, 1}, {}) == Placement(0, 0)


def test_what_a_running_request_has_is_copied() -> None:
    cache = PromptCache(slots=2)
    assert cache.place(longer(CHAT), {1}, {0: CHAT}) == Placement(1, 100, (Copy(0, 1, 100),))


def test_the_text_of_no_use_for_longest_is_overwritten_and_kept() -> None:
    cache = PromptCache(slots=2, kept=1)
    cache.leave(0, CHAT)
    cache.leave(1, OTHER)
    assert cache.place(THIRD, {0, 1}, {}) == Placement(0, 0, (Copy(0, 2, 100),))
    cache.leave(0, THIRD)
    again = cache.place(longer(CHAT), {0, 1}, {})  # from where it was kept, over the older text
    assert again == Placement(1, 100, (Copy(2, 1, 100),))


def test_what_others_have_is_not_kept_twice() -> None:
    cache = PromptCache(slots=2, kept=2)
    cache.leave(0, CHAT)
    assert cache.place(THIRD, {0}, {1: longer(CHAT)}) == Placement(0, 0)
    cache.leave(0, CHAT)
    cache.leave(1, OTHER)
    assert cache.place(THIRD, {0}, {}).copies == (Copy(0, 2, 100),)
    cache.leave(0, longer(CHAT))
    assert cache.place(THIRD, {0}, {}).copies == (Copy(0, 2, 150),)  # over its own beginning


def test_what_is_shared_is_found_at_any_length() -> None:
    rng = random.Random(1)
    for _ in range(300):
        one = tuple(rng.choices((1, 2), k=rng.randrange(200)))
        end = tuple(rng.choices((1, 2), k=rng.randrange(1, 150)))
        other = one[: rng.randrange(len(one) + 1)] + end
        pairs = zip(one, other[:-1], strict=False)
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        assert shared(Text(one), Text(other)) == len(list(alike))


def test_a_text_takes_the_place_of_one_that_is_mostly_in_it() -> None:
    """An answer that nobody went on with, behind a prompt that somebody did."""
    cache = PromptCache(slots=1, kept=2)
    for each in (CHAT, OTHER, Text((*CHAT.ids[:90], *range(8000, 8060)))):
        cache.place(each, {0}, {})
        cache.leave(0, each)
    assert cache.place(THIRD, {0}, {}).copies == (Copy(0, 1, 150),)
    assert cache.longest(longer(OTHER), {}) == 100


def test_salts_part_texts_and_who_wants_none_gets_none() -> None:
    cache = PromptCache(slots=1)
    cache.leave(0, CHAT)
    assert cache.longest(longer(CHAT)._replace(salt="a"), {}) == 0
    assert cache.longest(longer(CHAT), {}) == 100
    assert cache.place(longer(CHAT), {0}, {}, reuse=False) == Placement(0, 0)
    assert cache.queries == 0


class Device:
    """A clock that plans move: so many seconds for each token read, and for each step."""

    def __init__(self, token_s: float, step_s: float) -> None:
        self.now, self._token_s, self._step_s = 0.0, token_s, step_s

    def __call__(self) -> float:
        return self.now

    def run(self, scheduler: Scheduler) -> tuple[Plan, float]:
        """The next plan, and how long it took."""
        plan = scheduler.plan()
        assert plan is not None
        chunk, began = plan.prefill, self.now
        self.now += self._step_s if plan.decode else 0
        self.now += len(chunk.token_ids) * self._token_s if chunk is not None else 0
        first = Token(7) if chunk is not None and chunk.sampling is not None else None
        scheduler.commit(plan, StepResult(first, tuple((Token(7),) for _ in plan.decode)))
        return plan, self.now - began


SIZES = (8, 32, 128, 256)


@pytest.mark.parametrize(
    ("token_s", "step_s", "size"),
    [
        (0.0001, 0.01, 256),  # all of them are quick
        (0.001, 0.03, 32),  # 30 and 32 ms: 128 would be too long
        (0.001, 0.06, 32),  # slow steps make longer gaps bearable
        (0.001, 0.15, 128),
        (0.02, 0.03, 8),  # nothing is short enough
    ],
)
def test_chunks_are_as_long_as_rows_beside_them_can_bear(
    token_s: float, step_s: float, size: int
) -> None:
    device = Device(token_s, step_s)
    limits = Limits(4, 4096, SIZES, max_queue=4, max_queue_tokens=9999, gap_s=0.08)
    scheduler = Scheduler(limits, device)
    prompt = Request(tuple(range(2000)), 200, cache_prompt=False)
    submit_one(scheduler, replace(prompt, token_ids=tuple(range(256))))
    assert device.run(scheduler)[0].prefill is not None  # alone it is read at once
    for _ in range(3):
        device.run(scheduler)
    submit_one(scheduler, prompt)
    for _ in range(4):
        plan, seconds = device.run(scheduler)
        assert plan.prefill is not None
        assert len(plan.prefill.token_ids) == size
        assert seconds <= max(0.08, 2.5 * step_s) or size == SIZES[0]


@pytest.mark.parametrize(
    ("tokens", "sizes"),
    [
        (5, [5]),
        (33, [32, 1]),
        (97, [97]),
        (200, [200]),
        (150, [128, 8, 8, 6]),
        (700, [256, 256, 128, 32, 28]),
    ],
)
def test_alone_a_prompt_is_read_in_chunks_that_are_mostly_filled(
    tokens: int, sizes: list[int]
) -> None:
    device = Device(0.001, 0.03)
    limits = Limits(1, 4096, SIZES, max_queue=4, max_queue_tokens=9999, gap_s=0.08)
    scheduler = Scheduler(limits, device)
    submit_one(scheduler, Request(tuple(range(tokens)), 1))
    found = []
    while scheduler.active or scheduler.queued:
        plan, _ = device.run(scheduler)
        found.append(len(plan.prefill.token_ids) if plan.prefill is not None else 0)
    assert found == sizes


def test_who_begins_like_one_that_is_being_read_waits_for_that() -> None:
    limits = Limits(3, 4096, (100,), max_queue=4, max_queue_tokens=9999)
    device = Device(0.001, 0.03)
    scheduler = Scheduler(limits, device)
    handles = [
        submit_one(scheduler, Request(each.ids, 1))
        for each in (longer(text((0, 300)), 5000), longer(text((0, 300)), 6000), THIRD)
    ]
    slots, copies = list[int](), list[Copy]()
    while scheduler.active or scheduler.queued:
        plan, _ = device.run(scheduler)
        assert plan.prefill is not None
        slots.append(plan.prefill.slot)
        copies += plan.copies
    assert slots == [0, 2, 0, 0, 1, 0]
    assert copies == [Copy(0, 1, 300)]
    assert [handle.cached_tokens for handle in handles] == [0, 300, 0]
