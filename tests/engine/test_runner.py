"""A tiny model at every pace: blocks, plans read late, programs without branches."""

from typing import Any

import numpy as np
import pytest

from gemma_server.engine.engine import Engine
from gemma_server.engine.pace import ON_CPU, ON_GPU, Pace
from gemma_server.engine.request import Finished, Handle, Request, SamplingOptions, Token
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.weights.orbax import OrbaxWeights
from tests.tiny import load_params, tiny_config, tiny_weights, write_orbax

pytestmark = pytest.mark.slow

NAME = "gemma3"
SLOTS, CONTEXT = 4, 256  # the cache's very length: what is surplus there has nowhere to go
PACES = {
    "on a CPU": ON_CPU,
    "in blocks": Pace(steps=3, ahead=0, branches=True),
    "on a GPU": ON_GPU,
}


@pytest.fixture(scope="module", params=PACES)
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gemma_server.engine.executables import Executables
    from gemma_server.engine.runner import Programs

    config, pace = tiny_config(NAME), PACES[request.param]
    made = Programs(
        config, slots=SLOTS, context_length=CONTEXT, dtype=np.dtype("float32"), pace=pace
    )
    kept = Executables(tmp_path_factory.mktemp("programs"), made.configuration)
    made.compile(lambda share: None, kept)
    return made


@pytest.fixture(scope="module")
def engine(programs: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model at each pace, as `build` puts it together."""
    from gemma_server.engine.runner import CHUNKS, JaxRunner

    pace = programs.pace
    path = write_orbax(tmp_path_factory.mktemp("tiny") / "checkpoint", tiny_weights(NAME))
    runner = JaxRunner(programs, load_params(OrbaxWeights(path), programs.config))
    runner.warm_up()
    limits = Limits(SLOTS, CONTEXT, CHUNKS[-1], 64, 10_000, steps=pace.steps)
    deaths: list[BaseException] = []
    made = Engine(runner, Scheduler(limits), deaths.append, ahead=pace.ahead)
    made.start()
    yield made
    made.stop()
    assert not deaths


@pytest.fixture(scope="module")
def answers() -> dict[int, list[int]]:
    """What the first pace answered; the others have to agree."""
    return {}


def make_request(number: int, stop_ids: frozenset[int] = frozenset()) -> Request:
    """Prompts of 1 to 255 tokens, and every way to sample."""
    rng = np.random.default_rng(number)
    length = (1, 3, 40, 100, 250, 255)[number % 6]
    sampling = (
        SamplingOptions(),
        SamplingOptions(temperature=1.0, seed=(1 << 63) + number),
        SamplingOptions(temperature=0.7, top_k=9, top_p=0.8, min_p=0.01, seed=number),
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
        assert ending == Finished("length", min(handle.request.max_tokens, room))
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
        assert read_all(handle) == (ids[:cut], Finished("stop", cut + 1))


def test_cancelling_leaves_the_others_alone(engine: Engine) -> None:
    [alone] = engine.submit([make_request(15)])
    expected = read_all(alone)
    gone, kept = engine.submit([make_request(2), make_request(15)])
    gone.next_event(60)
    engine.cancel(gone)
    assert read_all(kept) == expected


def test_without_branches_nothing_makes_the_host_wait(programs: Any) -> None:
    """XLA on a GPU reads conditions back, and those of loops whose turns it cannot count."""
    waits = [
        line
        for program in programs._compiled.values()
        for line in program.as_text().splitlines()
        if " conditional(" in line or (" while(" in line and "known_trip_count" not in line)
    ]
    assert bool(waits) == programs.pace.branches
