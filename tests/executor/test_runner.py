"""A tiny model at every pace: blocks, plans read late, programs without branches."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gemma_server.engine.engine import Engine
from gemma_server.engine.request import (
    Finished,
    Handle,
    PromptLogprobs,
    Request,
    SamplingParams,
    Token,
)
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.executor import programs as executor_programs
from gemma_server.executor.compile_cache import CompileCache
from gemma_server.executor.dispatch_policy import ON_CPU, ON_GPU
from gemma_server.executor.programs import Programs
from gemma_server.executor.runner import JaxRunner
from gemma_server.private_directory import PrivateDirectory
from testing.counts import is_long
from testing.tiny import tiny_config, tiny_params

pytestmark = pytest.mark.slow

NAME = "gemma2"  # the fewest layers that are of both kinds
SLOTS, CONTEXT = 4, 256  # the cache's very length: what is surplus there has nowhere to go
POLICIES = {"on a CPU": ON_CPU, "on a GPU": ON_GPU}
SIZES = {"on a CPU": (8, 64), "on a GPU": (64,)}  # each is one program more, or several
if is_long():
    POLICIES["in blocks"] = replace(ON_CPU, steps=3)
    SIZES = {name: policy.chunks for name, policy in POLICIES.items()}


@pytest.fixture(scope="module", params=POLICIES)
def programs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Programs]:
    with pytest.MonkeyPatch.context() as patch:
        if not is_long():
            patch.setattr(executor_programs, "row_counts", lambda slots: [slots])
        yield _compiled(request.param, tmp_path_factory)


def _compiled(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    made = Programs(
        tiny_config(NAME),
        slots=SLOTS,
        context_length=CONTEXT,
        dtype=np.dtype("float32"),
        policy=POLICIES[policy],
        chunks=SIZES[policy],
    )
    directory = PrivateDirectory(tmp_path_factory.mktemp("programs"))
    made.compile(lambda share: None, CompileCache(directory, made.configuration))
    return made


@pytest.fixture(scope="module")
def engine(programs: Programs) -> Iterator[Engine]:
    """The tiny model under each policy, as it is served."""
    policy = programs.policy
    runner = JaxRunner(programs, tiny_params(NAME))
    runner.warm_up()
    limits = Limits(SLOTS, CONTEXT, programs.chunks, 64, 10_000, steps=policy.steps)
    deaths: list[BaseException] = []
    made = Engine(runner, Scheduler(limits), deaths.append, max_in_flight=policy.max_in_flight)
    made.start()
    yield made
    made.stop()
    assert not deaths


@pytest.fixture(scope="module")
def answers() -> dict[int, list[int]]:
    """What the first pace answered; the others have to agree."""
    return {}


@pytest.fixture(scope="module")
def scores() -> dict[int, list[float]]:
    """The same of the logprobs."""
    return {}


def make_request(number: int, stop_ids: frozenset[int] = frozenset()) -> Request:
    """Prompts of 1 to 255 tokens, and every way to sample."""
    rng = np.random.default_rng(number)
    length = (1, 3, 40, 100, 250, 255)[number % 6]
    sampling = (
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=(1 << 63) + number),
        SamplingParams(temperature=0.7, top_k=9, top_p=0.8, min_p=0.01, seed=number),
    )[number // 2 % 3]
    ids = rng.integers(0, tiny_config(NAME).vocab, length).tolist()
    return Request(tuple(ids), 5 + 3 * number % 17, sampling, stop_ids)


def read_all(handle: Handle) -> tuple[list[int], object]:
    ids: list[int] = []
    while isinstance(event := handle.next_event(60), Token):
        ids.append(event.id)
    return ids, event


def test_every_pace_gives_the_same_answers_alone_and_in_company(
    engine: Engine, answers: dict[int, list[int]]
) -> None:
    numbers = range(18)
    for number in numbers:
        [handle] = engine.submit([make_request(number)])
        ids, ending = read_all(handle)
        room = CONTEXT - len(handle.request.token_ids)
        assert ending == Finished("length", min(handle.request.max_new_tokens, room))
        assert ids == answers.setdefault(number, ids)
    for number, handle in enumerate(engine.submit([make_request(number) for number in numbers])):
        assert read_all(handle)[0] == answers[number]


def test_a_stop_id_ends_an_answer_within_a_block_and_its_slot_is_clean(engine: Engine) -> None:
    for number in (2, 7):
        [handle] = engine.submit([make_request(number)])
        ids, _ = read_all(handle)
        stop = ids[4]
        [handle] = engine.submit([make_request(number, frozenset({stop}))])
        cut = ids.index(stop)
        assert read_all(handle) == (ids[:cut], Finished("stop", cut + 1, Token(stop)))


def test_cancelling_leaves_the_others_alone(engine: Engine) -> None:
    [alone] = engine.submit([make_request(15)])
    expected = read_all(alone)
    gone, kept = engine.submit([make_request(2), make_request(15)])
    gone.next_event(60)
    engine.cancel(gone)
    assert read_all(kept) == expected


def test_a_visit_to_the_device_is_no_step(engine: Engine) -> None:
    steps = engine.stats().steps
    [handle] = engine.submit([make_request(3)])
    expected = read_all(handle)
    [again] = engine.submit([make_request(3)])
    for _ in range(5):
        engine.probe(device=True)
    assert read_all(again) == expected
    assert engine.stats().steps > steps
    idle = engine.stats().steps
    engine.probe(device=True)
    assert engine.stats().steps == idle


def test_without_branches_nothing_makes_the_host_wait(programs: Any) -> None:
    """XLA on a GPU reads conditions back, and those of loops whose turns it cannot count."""
    waits = [
        line
        for program in programs._compiled.values()
        for line in program.as_text().splitlines()
        if " conditional(" in line or (" while(" in line and "known_trip_count" not in line)
    ]
    assert bool(waits) == programs.policy.branches


def test_logprobs_change_no_token_and_are_the_same_at_every_pace(
    engine: Engine, answers: dict[int, list[int]], scores: dict[int, Any]
) -> None:
    """Among rows that want none; test_logprobs.py holds the numbers against the oracle."""
    numbers = range(6)
    wanted = [replace(make_request(n), top_logprobs=3, prompt_logprobs=n % 2 == 1) for n in numbers]
    handles = engine.submit([r for n in numbers for r in (wanted[n], make_request(n))])
    for number in numbers:
        events = []
        while not isinstance(event := handles[2 * number].next_event(60), Finished):
            events.append(event)
        prompt = [s for e in events if isinstance(e, PromptLogprobs) for s in e.scores]
        tokens = [event for event in events if isinstance(event, Token)]
        expected = read_all(handles[2 * number + 1])[0]
        assert [token.id for token in tokens] == answers.setdefault(number, expected) == expected
        assert len(prompt) == (number % 2) * (len(wanted[number].token_ids) - 1)
        found = [s.logprob for s in (*prompt, *(t.logprobs for t in tokens)) if s is not None]
        assert len(found) == len(prompt) + len(tokens)
        np.testing.assert_allclose(found, scores.setdefault(number, found), atol=1e-4)


def test_adjustments_steer_their_own_row_and_no_other(
    engine: Engine, answers: dict[int, list[int]]
) -> None:
    plain = make_request(2)
    [alone] = engine.submit([plain])
    expected = read_all(alone)[0]
    stop = expected[0]
    biased = SamplingParams(bias=((5, 1e4),))
    distinct = SamplingParams(bias=((5, 30.0), (6, 30.0)), frequency_penalty=1e4)
    requests = [
        plain,
        replace(plain, sampling=biased),
        replace(plain, sampling=distinct),
        replace(plain, stop_ids=frozenset({stop, 5}), min_tokens=4, sampling=biased),
        replace(plain, max_new_tokens=0),
    ]
    handles = engine.submit(requests)
    got = [read_all(handle) for handle in handles]
    count = plain.max_new_tokens
    assert got[0] == (expected, Finished("length", count))
    assert got[1][0] == [5] * count
    assert len(set(got[2][0])) == count
    assert set(got[2][0][:2]) == {5, 6}
    assert not {stop, 5} & set(got[3][0])
    ending = got[3][1]
    assert isinstance(ending, Finished)
    assert (ending.reason, ending.tokens) == ("stop", 5)
    assert ending.stop is not None
    assert ending.stop.id in {stop, 5}
    assert got[4] == ([], Finished("length", 0))
