"""The fake runner refuses plans that no device could run."""

import pytest

from gemma_server.engine.fake import FakeRunner
from gemma_server.engine.plan import Chunk, Copy, Plan, Row
from gemma_server.engine.request import SamplingParams, Token

GREEDY = SamplingParams()
PROMPT = (10, 11, 12, 13)


def runner_with_a_prompt() -> FakeRunner:
    runner = FakeRunner(3)
    runner.dispatch(Plan(Chunk(0, 0, 0, PROMPT, GREEDY), ()))
    return runner


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (Plan(Chunk(1, 1, 1, (5,), GREEDY), ()), "leaves a gap"),
        (Plan(None, (Row(0, 0, 3, GREEDY),)), "not the cache's end"),
        (Plan(None, (Row(0, 0, 5, GREEDY),)), "not the cache's end"),
        (Plan(None, (), (Copy(0, 1, 5),)), "has not cached 5"),
        (Plan(None, (), (Copy(2, 1, 1),)), "has not cached 1"),
        (Plan(None, (), (Copy(0, 1, 0),)), "has not cached 0"),
    ],
)
def test_what_nobody_wrote_is_not_read(plan: Plan, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        runner_with_a_prompt().dispatch(plan)


def test_a_copy_has_what_its_source_had_up_to_its_length() -> None:
    runner = runner_with_a_prompt()
    plan = Plan(Chunk(1, 2, 2, (20, 21), GREEDY), (), (Copy(0, 2, 2),))
    assert runner.dispatch(plan).read().prefill == Token(11)  # the prompt again, behind its first
    rows = tuple(Row(1, 2, 4, GREEDY, steps=steps) for steps in (3,))
    assert runner.dispatch(Plan(None, rows)).read().decode == ((Token(20), Token(21), Token(1)),)


def test_each_row_samples_as_many_tokens_as_it_asks_for() -> None:
    runner = runner_with_a_prompt()
    runner.dispatch(Plan(Chunk(1, 1, 0, PROMPT, GREEDY), ()))
    plan = Plan(None, (Row(0, 0, 4, GREEDY, steps=1), Row(1, 1, 4, GREEDY, steps=3)))
    assert plan.steps == 3
    assert runner.dispatch(plan).read().decode == (
        (Token(12),),
        (Token(12), Token(13), Token(1)),
    )
