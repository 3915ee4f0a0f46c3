"""Constrained requests beside others, in blocks and ahead of results: each token is in its mask."""

import copy
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_server.engine.request import Cancelled, Failed, Finished, Request, Token
from gemma_server.errors import ConstraintFailed
from testing.scheduling import submit_one
from tests.engine.test_plans_ahead import STOP, Pipeline, answer_to, events, make_request

VOCAB = 263  # the fake's


class Random:
    """Allows other tokens each time, the same for a seed, and notes what it was given. It is
    complete after `longest` tokens, and fails on token number `fail_at`."""

    def __init__(self, seed: int, longest: int, fail_at: int | None = None) -> None:
        self._rng, self._longest, self._fail_at = random.Random(seed), longest, fail_at
        self.taken: list[int] = []
        self.is_complete = False
        self.mask: bytes | None = None
        self._allow()

    def _allow(self) -> None:
        self.allowed = set(self._rng.sample(range(2, VOCAB), self._rng.randrange(1, 20)))
        if self._rng.random() < 0.1:
            self.allowed.add(STOP)
        bits = bytearray(-(-VOCAB // 32) * 4)
        for token in self.allowed:
            bits[token // 8] |= 1 << token % 8
        self.mask = bytes(bits)

    def foresee(self, guess: Sequence[int], most: int) -> list[tuple[int, bytes]]:
        """What it will allow is known to it, whatever is taken."""
        later, found = copy.deepcopy(self), list[tuple[int, bytes]]()
        for token in guess[:most]:
            if token not in later.allowed or len(later.taken) + 1 in (self._longest, self._fail_at):
                break
            later.take(token)
            assert later.mask is not None
            found.append((token, later.mask))
        return found

    def take(self, token: int) -> None:
        assert token in self.allowed
        self.taken.append(token)
        if len(self.taken) == self._fail_at:
            raise ConstraintFailed("told to")
        self.is_complete = len(self.taken) == self._longest
        self._allow()


ACTIONS = st.sampled_from(["submit", "constrained", "dispatch", "dispatch", "commit", "cancel"])


@settings(deadline=None, max_examples=200)
@given(
    slots=st.integers(1, 3),
    steps=st.integers(1, 5),
    max_draft=st.integers(0, 5),
    ahead=st.integers(0, 3),
    actions=st.lists(st.tuples(ACTIONS, st.integers(0, 99)), max_size=40),
)
def test_no_token_outside_a_mask_is_ever_drawn(
    slots: int, steps: int, max_draft: int, ahead: int, actions: list[tuple[str, int]]
) -> None:
    pipeline = Pipeline(slots, 4, steps, max_draft=max_draft)
    asked: list[tuple[Any, Random | None, bool]] = []  # with whether it was cancelled
    for action, number in actions:
        match action:
            case "submit" | "constrained" if pipeline.scheduler.queued < 3:
                request, constraint = make_request(1 + number % 7, 1 + number % 9), None
                if action == "constrained":
                    constraint = Random(number, 1 + number % 5, number if number < 4 else None)
                    request = Request(
                        request.token_ids,
                        request.max_new_tokens,
                        stop_ids=request.stop_ids,
                        constraint=constraint,
                    )
                asked.append((submit_one(pipeline.scheduler, request), constraint, False))
            case "cancel" if asked:
                handle, constraint, _ = asked[number % len(asked)]
                pipeline.scheduler.cancel(handle)
                asked[number % len(asked)] = (handle, constraint, True)
            case "dispatch" if len(pipeline.in_flight) <= ahead:
                pipeline.dispatch()
            case "commit":
                pipeline.commit()
    pipeline.finish(ahead)
    for handle, constraint, was_cancelled in asked:
        *tokens, last = events(handle)
        if was_cancelled and last == Cancelled():
            continue
        if constraint is None:
            assert [*tokens, last] == answer_to(handle.request)
            continue
        ids = [token.id for token in tokens if isinstance(token, Token)]
        assert ids == constraint.taken  # each was asserted to be in its mask
        match last:
            case Finished("stop", count, stop):
                assert constraint.is_complete or (stop is not None and stop.id == STOP)
                assert count == len(ids) + (stop is not None)
            case Finished("length"):
                assert len(ids) == handle.request.max_new_tokens or len(ids) < 32
            case Failed(error):
                assert isinstance(error, ConstraintFailed)
            case _:
                raise AssertionError(last)


def test_rows_beside_a_constrained_one_keep_their_blocks() -> None:
    pipeline = Pipeline(2, 8, 4)
    free = make_request(6, 20)
    submit_one(pipeline.scheduler, free)
    bound = Request((20, 21), 9, stop_ids=frozenset({STOP}), constraint=Random(1, 9))
    submit_one(pipeline.scheduler, bound)
    pipeline.dispatch()
    pipeline.dispatch()
    pipeline.commit()
    pipeline.commit()
    pipeline.dispatch()
    plan, _ = pipeline.in_flight[-1]
    assert [row.steps for row in plan.decode] == [4, 1]
    assert [row.masks != (None,) for row in plan.decode] == [False, True]
