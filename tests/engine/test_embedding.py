"""The engine of a model that embeds texts, on a runner that remembers its steps."""

import time
from collections.abc import Iterator

import pytest

from gemma_server.engine.embedding import EmbeddingEngine, EmbeddingLimits
from gemma_server.engine.priority import BATCH_EVERY
from gemma_server.engine.watchdog import StepTimes
from gemma_server.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EmptyPrompt,
    GenerationFailed,
    NotReady,
    QueueFull,
)
from testing.fake_embedding import FakeEmbeddingRunner, fake_vector
from testing.waiting import wait_until

SHORT, MIDDLE, LONG = (1, 2), (3,) * 20, (4,) * 100


class Engine(EmbeddingEngine):
    """An engine, its runner and what it died of."""

    def __init__(self, runner: FakeEmbeddingRunner, limits: EmbeddingLimits, hung: float | None):
        self.runner = runner
        self.deaths: list[BaseException] = []
        super().__init__(runner, limits, self.deaths.append, StepTimes(given_s=hung))


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    made: list[Engine] = []
    yield made
    for engine in made:
        engine.runner.open.set()
        engine.stop()


@pytest.fixture
def engine(engines: list[Engine]) -> Engine:
    return start(engines)


def start(
    engines: list[Engine],
    *,
    max_queue: int = 4,
    max_queue_tokens: int = 1000,
    fail_at: int | None = None,
    hung_after: float | None = None,
) -> Engine:
    limits = EmbeddingLimits(256, max_queue, max_queue_tokens)
    engines.append(Engine(FakeEmbeddingRunner(fail_at=fail_at), limits, hung_after))
    engines[-1].start()
    return engines[-1]


def hold(engine: Engine) -> None:
    """Keep the device busy with a text of its own."""
    engine.runner.open.clear()
    engine.submit([SHORT], caller="holder")
    wait_until(lambda: len(engine.runner.steps) == 1)


def test_texts_come_back_in_their_order_whatever_the_order_of_work(engine: Engine) -> None:
    texts = [LONG, SHORT, MIDDLE, *[(index, 9) for index in range(1, 8)], LONG]
    request = engine.submit(texts)
    assert request.wait(10)
    assert request.vectors == list(map(fake_vector, texts))
    lengths = [length for length, _ in engine.runner.steps]
    assert lengths == [8, 8, 32, 256]  # nine texts of the least, four at most at once
    assert engine.stats().queued == engine.stats().active == 0
    assert engine.stats().steps == 4


def test_texts_of_several_requests_share_a_step(engine: Engine) -> None:
    hold(engine)
    requests = [engine.submit([SHORT, LONG], caller=str(index)) for index in range(3)]
    engine.runner.open.set()
    assert all(request.wait(10) for request in requests)
    assert [(length, len(texts)) for length, texts in engine.runner.steps[1:]] == [(8, 3), (256, 3)]


def test_callers_take_turns(engine: Engine) -> None:
    hold(engine)
    many = engine.submit([SHORT] * 40, caller="many")
    one = engine.submit([LONG], caller="one")
    engine.runner.open.set()
    assert one.wait(10)
    assert many.wait(10)
    assert [length for length, _ in engine.runner.steps].index(256) == 2


def test_one_caller_s_many_requests_take_no_more_turns_than_another_s_one(engine: Engine) -> None:
    hold(engine)
    many = [engine.submit([SHORT] * 4, caller="many") for _ in range(3)]
    one = engine.submit([LONG], caller="one")
    engine.runner.open.set()
    assert one.wait(10)
    assert all(request.wait(10) for request in many)
    assert [length for length, _ in engine.runner.steps] == [8, 8, 256, 8, 8]


def test_interactive_requests_go_first_but_no_batch_starves(engine: Engine) -> None:
    hold(engine)
    batch = engine.submit([LONG] * 8, caller="batch", priority="batch")
    many = engine.submit([SHORT] * 40, caller="many")
    engine.runner.open.set()
    assert batch.wait(10)
    assert many.wait(10)
    lengths = [length for length, _ in engine.runner.steps[1:]]
    assert lengths == [8] * (BATCH_EVERY - 1) + [256] + [8] * 3 + [256]


def test_what_can_never_be_embedded_is_refused(engine: Engine) -> None:
    with pytest.raises(EmptyPrompt):
        engine.submit([SHORT, ()])
    with pytest.raises(ContextLengthExceeded) as refused:
        engine.submit([(1,) * 257])
    assert (refused.value.prompt_tokens, refused.value.limit) == (257, 256)


def test_a_full_queue_refuses_by_requests_and_by_tokens(engines: list[Engine]) -> None:
    engine = start(engines, max_queue=1, max_queue_tokens=150)
    hold(engine)
    with pytest.raises(QueueFull) as by_tokens:
        engine.submit([LONG, LONG])
    assert (by_tokens.value.unit, by_tokens.value.more, by_tokens.value.limit) == (
        "tokens",
        200,
        150,
    )
    waiting = engine.submit([LONG])
    with pytest.raises(QueueFull) as by_places:
        engine.submit([SHORT])
    assert (by_places.value.unit, by_places.value.queued) == ("requests", 1)
    assert by_places.value.retry_after_s >= 1
    engine.runner.open.set()
    assert waiting.wait(10)
    wait_until(lambda: engine.stats().active == 0)
    assert engine.submit([LONG, LONG]).wait(10)  # an empty queue takes any request


def test_a_request_that_is_given_up_takes_no_step(engine: Engine) -> None:
    hold(engine)
    request = engine.submit([LONG])
    engine.cancel(request)
    assert request.wait(0)
    assert request.cancelled
    engine.runner.open.set()
    assert engine.submit([MIDDLE]).wait(10)
    assert [length for length, _ in engine.runner.steps] == [8, 32]
    engine.cancel(request)  # once more does nothing


def test_a_deadline_that_passes_in_the_queue_ends_the_request(engine: Engine) -> None:
    hold(engine)
    request = engine.submit([LONG], deadline=time.monotonic() + 0.3)
    time.sleep(0.4)
    engine.runner.open.set()
    with pytest.raises(DeadlineExceeded):
        request.wait(10)
    assert engine.submit([MIDDLE]).wait(10)
    assert [length for length, _ in engine.runner.steps] == [8, 32]


def test_a_deadline_that_cannot_be_met_is_refused_by_the_measured_rate(engine: Engine) -> None:
    hold(engine)
    time.sleep(0.05)
    engine.runner.open.set()
    wait_until(lambda: engine.stats().active == 0)
    with pytest.raises(DeadlineExceeded, match="or more"):
        engine.submit([LONG], deadline=time.monotonic() + 0.01)
    assert engine.submit([LONG], deadline=time.monotonic() + 60).wait(10)


def test_a_vector_that_is_not_finite_fails_its_request_alone(engine: Engine) -> None:
    engine.runner.broken.add(MIDDLE)
    hold(engine)
    broken, whole = engine.submit([MIDDLE, LONG]), engine.submit([MIDDLE[:-1]])
    engine.runner.open.set()
    with pytest.raises(GenerationFailed, match="no finite number"):
        broken.wait(10)
    assert whole.wait(10)
    assert [length for length, _ in engine.runner.steps] == [8, 32]


def test_a_runner_that_raises_ends_all(engines: list[Engine]) -> None:
    engine = start(engines, fail_at=1)
    with pytest.raises(GenerationFailed, match="RuntimeError"):
        engine.submit([SHORT]).wait(10)
    wait_until(lambda: len(engine.deaths) == 1)
    with pytest.raises(GenerationFailed):
        engine.submit([SHORT])


def test_stopping_ends_what_waits(engine: Engine) -> None:
    hold(engine)
    request = engine.submit([LONG])
    engine.stop(0.1)
    with pytest.raises(NotReady):
        request.wait(0)
    with pytest.raises(NotReady):
        engine.submit([SHORT])


def test_a_device_that_hangs_is_seen(engines: list[Engine]) -> None:
    engine = start(engines, hung_after=0.3)
    hold(engine)
    wait_until(engine.is_slow)
    wait_until(lambda: len(engine.deaths) == 1)
    with pytest.raises(GenerationFailed, match="not answered"):
        engine.submit([SHORT])
