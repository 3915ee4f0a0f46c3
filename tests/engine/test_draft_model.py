"""A small model that goes on with the texts of a large one: both fakes, which know the answer."""

import itertools
from collections.abc import Iterator

import pytest

from gemma_server.engine.draft import worth_asking
from gemma_server.engine.draft_model import Asked, DraftModel
from gemma_server.engine.engine import Engine
from gemma_server.engine.fake import FakeRunner
from gemma_server.engine.plan import Plan
from gemma_server.engine.prompt_cache import Text
from gemma_server.engine.request import Finished, Request, SamplingParams, Token
from gemma_server.engine.scheduler import Limits, Scheduler

BYTE = FakeRunner.first_byte
STOP = frozenset({1})
CAPITALS = SamplingParams(temperature=1.0, seed=1)  # which nothing in the prompt foretells


class Watched(FakeRunner):
    """A fake that keeps its plans."""

    def __init__(self, slots: int, step_s: float = 0.0) -> None:
        super().__init__(slots, step_s=step_s)
        self.plans: list[Plan] = []

    def dispatch(self, plan: Plan):  # type: ignore[no-untyped-def]
        self.plans.append(plan)
        return super().dispatch(plan)


def make(
    runner: FakeRunner, *, context_length: int = 64, chunk: int = 4, plan_s: float = 1.0
) -> DraftModel:
    moments = itertools.count(0.0, plan_s / 2)
    return DraftModel(
        runner,
        slots=2,
        context_length=context_length,
        chunks=(chunk, 64),
        rows=(1, 4, 8),
        vocab=300,
        clock=lambda: next(moments),
    )


def ids(text: str) -> tuple[int, ...]:
    return (2, *(BYTE + byte for byte in text.encode()))


def asked(text: str, answer: str, most: int = 3, sequence: int = 7, **others: object) -> Asked:
    whole = Text((*ids(text), *ids(answer)[1:]))
    return Asked(sequence, 0, whole, len(ids(text)), SamplingParams(), most, **others)  # type: ignore[arg-type]


def proposed(model: DraftModel, wanted: Asked) -> list[int]:
    """What it proposes once it has read the text."""
    for _ in range(100):
        if found := model.propose([wanted]).get(wanted.sequence):
            return found
    raise AssertionError("it never proposes anything")


def test_it_reads_a_chunk_in_a_turn_then_goes_on() -> None:
    runner = Watched(2)
    model = make(runner)
    found = [model.propose([asked("abcdefghij", "a")]) for _ in range(4)]
    assert found == [{}, {}, {}, {7: list(ids("bcd")[1:])}]
    chunks = [plan.prefill for plan in runner.plans if plan.prefill is not None]
    assert [len(chunk.token_ids) for chunk in chunks] == [4, 4, 3]
    assert [chunk.sampling is not None for chunk in chunks] == [False, False, True]
    assert all(len(plan.decode) == 1 for plan in runner.plans[3:])


def test_it_feeds_only_what_it_did_not_draft_itself() -> None:
    runner = Watched(2)
    model = make(runner)
    proposed(model, asked("abcdefghij", "a"))
    runner.plans.clear()
    assert model.propose([asked("abcdefghij", "abcde")]) == {7: list(ids("fgh")[1:])}
    assert [[row.fed for row in plan.decode] for plan in runner.plans] == [[2], [1], [1]]
    runner.plans.clear()  # of the last three, one was right
    assert model.propose([asked("abcdefghij", "abcdefx")]).keys() == {7}
    assert [[row.fed for row in plan.decode] for plan in runner.plans] == [[1], [1], [1]]


def test_another_request_in_the_slot_begins_where_the_texts_differ() -> None:
    runner = Watched(2)
    model = make(runner)
    proposed(model, asked("abcdefghij", "ab"))
    runner.plans.clear()
    assert proposed(model, asked("abcdefxyz", "a", sequence=8)) == list(ids("bcd")[1:])
    assert [plan.prefill.offset for plan in runner.plans if plan.prefill] == [7]
    runner.plans.clear()
    proposed(model, asked("abcdefxyz", "a", sequence=9, reuses=False))
    assert next(plan.prefill.offset for plan in runner.plans if plan.prefill) == 0


def test_a_text_that_its_context_has_no_room_for_is_left_alone() -> None:
    runner = Watched(2)
    assert make(runner, context_length=8).propose([asked("abcdefg", "a")]) == {}
    assert runner.plans == []


def test_numbers_that_are_not_finite_end_a_draft() -> None:
    class Broken(FakeRunner):
        def _wish(self, slot: int, sampling: SamplingParams) -> int:
            return -1

    model = make(Broken(2))
    for _ in range(5):
        assert not any(model.propose([asked("abc", "a")]).values())


@pytest.mark.parametrize(
    ("chances", "rows", "ask_s", "wanted"),
    [
        ([0.9], 1, 0.01, 7),
        ([0.9], 1, 0.15, 0),  # it is no quicker than the large one
        ([0.3], 1, 0.02, 1),
        ([0.02], 1, 0.01, 0),
        ([0.9, 0.9], 2, 0.01, 3),
        ([0.9], 8, 0.01, 0),  # the batch is full
    ],
)
def test_as_many_tokens_are_asked_for_as_pay(
    chances: list[float], rows: int, ask_s: float, wanted: int
) -> None:
    def step_s(fed: int) -> float:
        return 0.1 if fed <= 4 else 0.11 if fed <= 8 else 0.2

    most = max(0, (8 - rows) // len(chances))
    assert worth_asking(chances, rows, most, step_s, ask_s) == wanted


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    made: list[Engine] = []
    yield made
    for engine in made:
        engine.stop()


def test_the_engine_takes_fewer_steps_for_the_same_answer(engines: list[Engine]) -> None:
    steps, deaths = [], list[BaseException]()
    for with_model in (False, True):
        limits = Limits(2, 128, (16,), 8, 1000, rows=(1, 4, 8), max_draft=7)
        small = make(FakeRunner(2), context_length=128, chunk=64, plan_s=0.0)
        engine = Engine(
            FakeRunner(2, step_s=0.002),
            Scheduler(limits),
            deaths.append,
            draft_model=small if with_model else None,
        )
        engines.append(engine)
        engine.start()
        request = Request(ids("The quick brown fox jumps over a lazy dog!"), 80, CAPITALS, STOP)
        [handle] = engine.submit([request])
        answer = []
        while isinstance(event := handle.next_event(5), Token):
            answer.append(event.id - BYTE)
        assert bytes(answer) == b"tHE QUICK BROWN FOX JUMPS OVER A LAZY DOG!"
        assert event == Finished("stop", 43, Token(1))
        steps.append(engine.stats().steps)
        assert (handle.accepted_tokens > 20) is with_model
    assert steps[1] < steps[0] / 2
