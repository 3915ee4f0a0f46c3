"""Blocks of any length, read any number of plans late: the answers are the same, one by one.

The fake runner answers a prompt with itself and refuses plans that no device could run, so what
each request must get is known beforehand.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_server.engine import prompt_cache
from gemma_server.engine.draft_model import DraftModel
from gemma_server.engine.fake import FakeRunner, FakeStep
from gemma_server.engine.plan import Plan, Runner
from gemma_server.engine.request import (
    Cancelled,
    Event,
    Finished,
    Handle,
    Request,
    SamplingParams,
    Token,
)
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.errors import Overloaded, PromptRefused
from testing.scheduling import submit_one

STOP = 1  # the fake runner's <eos>
CONTEXT = 32
SMALL, CAPITAL = (FakeRunner.first_byte + ord(letter) for letter in "aA")


class Pipeline:
    """A scheduler on the fake runner, with as many plans in flight as the test wants."""

    def __init__(
        self,
        slots: int,
        chunk: int,
        steps: int,
        kept: int = 0,
        max_draft: int = 0,
        draft_model: DraftModel | None = None,
    ) -> None:
        others: dict[str, Any] = {"rows": (1, 4, 8), "max_draft": max_draft, "kept": kept}
        limits = Limits(slots, CONTEXT, (chunk,), 3, 50, steps=steps, **others)
        moments = itertools.count()
        self.scheduler = Scheduler(limits, clock=lambda: float(next(moments)))
        self._draft_model = draft_model
        self.in_flight: deque[tuple[Plan, FakeStep]] = deque()
        self._runner = FakeRunner(slots + kept)

    def dispatch(self) -> bool:
        """Plan and dispatch; False when there is nothing to plan."""
        if self._draft_model is not None and not self.in_flight:
            asked = self.scheduler.to_ask(self._draft_model.token_s)
            self.scheduler.foreseen(self._draft_model.propose(asked))
        plan = self.scheduler.plan()
        if plan is None:
            return False
        assert all(row.position < CONTEXT for row in plan.decode)
        self.in_flight.append((plan, self._runner.dispatch(plan)))
        return True

    def commit(self) -> None:
        """Read and commit the oldest plan in flight, if there is one."""
        if self.in_flight:
            plan, step = self.in_flight.popleft()
            self.scheduler.commit(plan, step.read())

    def finish(self, ahead: int) -> None:
        """As the engine does it, until there is nothing to do."""
        while (planned := self.dispatch()) or self.in_flight:
            if not planned or len(self.in_flight) > ahead:
                self.commit()


class WrongAtTimes(FakeRunner):
    """Another model: every third token is another one."""

    def _wish(self, slot: int, sampling: SamplingParams) -> int:
        token = super()._wish(slot, sampling)
        return token if len(self._cached[slot]) % 3 else token + 1


def draft_model_on(runner: Runner, slots: int, chunk: int) -> DraftModel:
    """A draft model that takes no time."""
    return DraftModel(
        runner,
        slots=slots,
        context_length=CONTEXT,
        chunks=(chunk,),
        rows=(1, 4, 8),
        vocab=300,
        clock=lambda: 0.0,
    )


def make_request(length: int, max_new_tokens: int, branch: int = 0) -> Request:
    """Prompts that are alike up to some token. Those of odd branches are of small letters, answered
    by capital ones; these say the same again and go on otherwise, so that drafts are wrong."""
    same, sampling = length * branch % 4 * 6, SamplingParams()
    ids = (*range(20, 20 + same), *range(130 + 20 * branch, 130 + 20 * branch + length))
    if branch % 2:
        ids = tuple(SMALL + i * i // (4 + branch) % 2 for i in range(length))
        sampling = SamplingParams(temperature=1.0, seed=1)
    return Request(
        ids[:length],
        max_new_tokens,
        sampling,
        stop_ids=frozenset({STOP}),
        cache_prompt=branch < 5,
    )


def answer_to(request: Request) -> list[Event]:
    """The prompt again without its first token, then <eos>, as far as there is room."""
    capital = SMALL - CAPITAL if request.sampling.seed else 0
    echo = [*(token - capital for token in request.token_ids[1:]), STOP]
    most = min(request.max_new_tokens, CONTEXT - len(request.token_ids))
    if most >= len(echo):
        return [*map(Token, echo[:-1]), Finished("stop", len(echo), Token(STOP))]
    return [*map(Token, echo[:most]), Finished("length", most)]


def events(handle: Handle) -> list[Event]:
    found = []
    while (event := handle.next_event(0)) is not None:
        found.append(event)
    return found


ACTIONS = st.sampled_from(["submit", "submit", "dispatch", "dispatch", "commit", "cancel"])


@pytest.fixture(autouse=True, scope="module")
def short_texts_count() -> Iterator[None]:
    """So that most are copied and kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_cache, "_WORTH_COPYING", 2)
        patch.setattr(prompt_cache, "_WORTH_KEEPING", 3)
        yield


@settings(deadline=None, max_examples=400)
@given(
    slots=st.integers(1, 3),
    kept=st.integers(0, 3),
    asks=st.booleans(),
    max_draft=st.integers(0, 5),
    chunk=st.integers(1, 9),
    steps=st.integers(1, 9),
    ahead=st.integers(0, 3),
    actions=st.lists(
        st.tuples(ACTIONS, st.integers(0, 40), st.integers(0, 40), st.integers(0, 5)), max_size=80
    ),
)
def test_every_accepted_request_gets_its_answer_and_one_terminal_event(
    slots: int,
    kept: int,
    asks: bool,
    max_draft: int,
    chunk: int,
    steps: int,
    ahead: int,
    actions: list[tuple[str, int, int, int]],
) -> None:
    draft_model = draft_model_on(WrongAtTimes(slots), slots, chunk) if asks else None
    pipeline = Pipeline(slots, chunk, steps, kept, max_draft, draft_model)
    handles: list[Handle] = []
    cancelled: set[Handle] = set()
    for action, number, tokens, branch in actions:
        if action == "submit":
            try:
                handles.append(submit_one(pipeline.scheduler, make_request(number, tokens, branch)))
            except (PromptRefused, Overloaded):
                continue
        elif action == "dispatch" and len(pipeline.in_flight) <= ahead:
            pipeline.dispatch()
        elif action == "commit":
            pipeline.commit()
        elif action == "cancel" and handles:
            cancelled.add(handles[number % len(handles)])
            pipeline.scheduler.cancel(handles[number % len(handles)])
        assert 0 <= pipeline.scheduler.active <= slots
        assert 0 <= pipeline.scheduler.queued <= 3 + slots
    pipeline.finish(ahead)
    assert (pipeline.scheduler.active, pipeline.scheduler.queued) == (0, 0)
    drawn = 0
    assert all(handle.cached_tokens <= len(handle.request.token_ids) - 1 for handle in handles)
    reused = sum(handle.cached_tokens for handle in handles)
    assert pipeline.scheduler.prompt_cache.tokens == reused
    for handle in handles:
        *tokens_got, ending = events(handle)
        expected = answer_to(handle.request)
        if handle in cancelled and ending == Cancelled():
            assert tokens_got == expected[: len(tokens_got)]
            drawn += len(tokens_got)
        else:
            assert [*tokens_got, ending] == expected
            assert isinstance(ending, Finished)
            drawn += ending.tokens
    assert pipeline.scheduler.tokens_sampled == drawn
