"""The engine's thread on the fake runner: many clients, cancellations, and death."""

import math
import random
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from gemma_server.engine.engine import Engine
from gemma_server.engine.fake import FakeRunner, FakeStep, fake_tokenizer
from gemma_server.engine.plan import Plan, Runner, StepResult
from gemma_server.engine.request import (
    Cancelled,
    Failed,
    Finished,
    Handle,
    Logprobs,
    PromptLogprobs,
    Request,
    Token,
)
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.errors import BatchTooLarge, GenerationFailed, Overloaded

TOKENIZER = fake_tokenizer()
[EOS] = TOKENIZER.stop_ids - {TOKENIZER.end_of_turn_id}
POLICIES = pytest.mark.parametrize(
    ("steps", "max_in_flight"),
    [(1, 1), (8, 2), (3, 3)],
    ids=["on a CPU", "on a GPU", "further ahead"],
)


def make_engine(
    runner: Runner,
    deaths: list[BaseException] | None = None,
    *,
    max_in_flight: int = 1,
    **changes: Any,
) -> Engine:
    limits: dict[str, Any] = {"slots": 4, "context_length": 512, "chunks": (16,), "max_queue": 100}
    scheduler = Scheduler(Limits(**{**limits, "max_queue_tokens": 10_000, **changes}))
    on_death = (deaths if deaths is not None else []).append
    engine = Engine(runner, scheduler, on_death, max_in_flight=max_in_flight)
    engine.start()
    return engine


def make_request(text: str, max_new_tokens: int = 500) -> Request:
    return Request(tuple(TOKENIZER.encode(text)), max_new_tokens, stop_ids=TOKENIZER.stop_ids)


def read_all(handle: Handle) -> tuple[str, object]:
    ids: list[int] = []
    while True:
        event = handle.next_event(10)
        if not isinstance(event, Token):
            return TOKENIZER.decode(ids), event
        ids.append(event.id)


@POLICIES
def test_many_clients_at_once_each_get_their_own_answer(steps: int, max_in_flight: int) -> None:
    engine = make_engine(FakeRunner(4), steps=steps, max_in_flight=max_in_flight)
    answers: dict[str, tuple[str, object]] = {}

    def client(number: int) -> None:
        text = f"client {number} " + "x" * (number * 7 % 60)
        [handle] = engine.submit([make_request(text)])
        answers[text] = read_all(handle)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    engine.stop()
    assert len(answers) == 32
    for text, (answer, ending) in answers.items():
        assert answer == text
        assert ending == Finished("stop", len(text) + 1, Token(EOS))


def test_requests_join_while_others_run() -> None:
    """With 3 slots and 3 requests of n tokens, the steps are nearer to n than to 3n."""
    runner = FakeRunner(4, step_s=0.001)
    engine = make_engine(runner)
    handles = [engine.submit([make_request("y" * 100)])[0] for _ in range(3)]
    for handle in handles:
        read_all(handle)
    assert engine.stats().steps < 1.5 * (100 + 3 * 7)
    engine.stop()


def test_cancelling_from_another_thread_frees_the_slot_quickly() -> None:
    engine = make_engine(FakeRunner(1, step_s=0.01), slots=1)
    [running] = engine.submit([make_request("a" * 400)])
    [waiting] = engine.submit([make_request("b")])
    assert isinstance(running.next_event(5), Token)
    began = time.monotonic()
    engine.cancel(running)
    assert read_all(waiting) == ("b", Finished("stop", 2, Token(EOS)))
    assert time.monotonic() - began < 1
    assert read_all(running)[1] == Cancelled()
    engine.stop()


def test_several_requests_are_queued_all_or_none() -> None:
    engine = make_engine(FakeRunner(1, step_s=0.01), slots=1, max_queue=2)
    with pytest.raises(BatchTooLarge, match="at most 3"):  # waiting would never help
        engine.submit([make_request("a") for _ in range(4)])
    [busy] = engine.submit([make_request("a" * 400)])
    assert isinstance(busy.next_event(5), Token)
    with pytest.raises(Overloaded):
        engine.submit([make_request("a" * 100) for _ in range(3)])
    assert (engine.stats().active, engine.stats().queued) == (1, 0)
    engine.cancel(busy)
    assert len(engine.submit([make_request("a") for _ in range(3)])) == 3
    engine.stop()


@POLICIES
def test_when_the_runner_raises_everybody_is_told_and_the_process_too(
    steps: int, max_in_flight: int
) -> None:
    deaths: list[BaseException] = []
    engine = make_engine(
        FakeRunner(1, fail_at=3), deaths, slots=1, steps=steps, max_in_flight=max_in_flight
    )
    for handle in engine.submit([make_request("a" * 40) for _ in range(3)]):
        ending = read_all(handle)[1]
        assert isinstance(ending, Failed)
        assert isinstance(ending.error, GenerationFailed)
    deadline = time.monotonic() + 5
    while not deaths and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [str(death) for death in deaths] == ["told to fail at step 3"]
    with pytest.raises(GenerationFailed):
        engine.submit([make_request("later")])


@POLICIES
def test_the_age_of_a_hanging_step_grows_and_an_idle_engine_has_none(
    steps: int, max_in_flight: int
) -> None:
    engine = make_engine(
        FakeRunner(1, step_s=0.3), slots=1, steps=steps, max_in_flight=max_in_flight
    )
    assert engine.step_age_s() == 0
    [handle] = engine.submit([make_request("a")])
    deadline = time.monotonic() + 5
    while engine.step_age_s() <= 0.1:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    read_all(handle)
    engine.stop()
    assert engine.step_age_s() == 0


@POLICIES
def test_stopping_fails_what_is_left(steps: int, max_in_flight: int) -> None:
    engine = make_engine(
        FakeRunner(1, step_s=0.01), slots=1, steps=steps, max_in_flight=max_in_flight
    )
    handles = [engine.submit([make_request("a" * 400)])[0] for _ in range(2)]
    assert isinstance(handles[0].next_event(5), Token)
    engine.stop()
    assert all(isinstance(read_all(handle)[1], Failed) for handle in handles)


@POLICIES
def test_slots_do_not_leak_under_random_clients(steps: int, max_in_flight: int) -> None:
    engine = make_engine(FakeRunner(4), steps=steps, max_in_flight=max_in_flight)
    rng = random.Random(0)

    def client(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(10):
            [handle] = engine.submit([make_request("z" * mine.randint(1, 40))])
            for _ in range(mine.randint(0, 20)):
                if not isinstance(handle.next_event(5), Token):
                    break
            engine.cancel(handle)

    threads = [threading.Thread(target=client, args=(rng.random(),)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (engine.stats().active, engine.stats().queued) == (0, 0)
    engine.stop()


class SlowReader:
    """A fake device whose results take their time, and which notes what is asked of it."""

    def __init__(self, slots: int, read_s: float = 0.0, fail_at_read: int = 0) -> None:
        self._runner = FakeRunner(slots)
        self.read_s, self.fail_at_read = read_s, fail_at_read
        self.dispatched: list[Plan] = []
        self.read: list[Plan] = []
        self.most_in_flight = 0

    def dispatch(self, plan: Plan) -> "SlowResult":
        self.dispatched.append(plan)
        self.most_in_flight = max(self.most_in_flight, len(self.dispatched) - len(self.read))
        return SlowResult(self, plan, self._runner.dispatch(plan))

    def touch(self) -> None:
        """Nobody visits it."""


class SlowResult:
    def __init__(self, device: SlowReader, plan: Plan, step: FakeStep) -> None:
        self._device, self._plan, self._step = device, plan, step

    def read(self) -> StepResult:
        time.sleep(self._device.read_s)
        self._device.read.append(self._plan)
        if len(self._device.read) == self._device.fail_at_read:
            raise RuntimeError("told to fail at a read")
        return self._step.read()


@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
def test_the_engine_runs_just_so_far_ahead_and_reads_all_in_order(
    max_in_flight: int,
) -> None:
    device = SlowReader(2)
    engine = make_engine(device, slots=2, steps=3, max_in_flight=max_in_flight)
    for handle in engine.submit([make_request("y" * 50), make_request("z" * 20)]):
        read_all(handle)
    deadline = time.monotonic() + 5
    while engine.step_age_s() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert engine.step_age_s() == 0  # idle, with nothing in flight
    assert device.read == device.dispatched
    assert device.most_in_flight == max_in_flight
    assert engine.stats().steps == sum(plan.steps for plan in device.read)
    assert engine.stats().tokens_sampled == 51 + 21
    engine.stop()


def test_the_age_of_a_step_is_that_of_the_last_progress() -> None:
    """Plans wait for each other on the device; none of these alone hangs."""
    engine = make_engine(SlowReader(1, read_s=0.02), slots=1, steps=2, max_in_flight=3)
    [handle] = engine.submit([make_request("a" * 60)])
    began, oldest = time.monotonic(), 0.0
    while isinstance(handle.next_event(5), Token):
        oldest = max(oldest, engine.step_age_s())
    assert 0 < oldest < time.monotonic() - began - 0.3
    engine.stop()


def test_a_failing_read_fails_everything_in_flight() -> None:
    deaths: list[BaseException] = []
    engine = make_engine(SlowReader(2, fail_at_read=3), deaths, slots=2, steps=2, max_in_flight=2)
    handles = engine.submit([make_request("a" * 40) for _ in range(4)])
    assert all(isinstance(read_all(handle)[1], Failed) for handle in handles)
    deadline = time.monotonic() + 5
    while not deaths and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [str(death) for death in deaths] == ["told to fail at a read"]


def test_stopping_waits_for_what_the_device_still_has() -> None:
    device = SlowReader(1, read_s=0.05)
    engine = make_engine(device, slots=1, steps=2, max_in_flight=3)
    [handle] = engine.submit([make_request("a" * 60)])
    assert isinstance(handle.next_event(5), Token)
    engine.stop()
    assert isinstance(read_all(handle)[1], Failed)
    assert device.read == device.dispatched


def test_the_fake_model_s_logprobs_and_its_answer_until_it_may_end() -> None:
    engine = make_engine(FakeRunner(1), slots=1, chunks=(2,))
    request = replace(make_request("ab"), min_tokens=4, top_logprobs=2, prompt_logprobs=True)
    [handle] = engine.submit([request])
    events = [handle.next_event(5) for _ in range(6)]
    engine.stop()

    def halves(token: int) -> Logprobs:
        return Logprobs(-math.log(2), ((token, -math.log(2)), (token + 1, -2 * math.log(2))))

    a, b, dot = TOKENIZER.encode("ab.")[1:]
    assert events[:2] == [PromptLogprobs((halves(a), halves(b))), Token(a, halves(a))]
    assert events[2:] == [
        *(Token(token, halves(token)) for token in (b, dot, dot)),
        Finished("stop", 5, Token(EOS, halves(EOS))),
    ]
