"""What a plan may say, on a tiny model: copies of slots, and steps that differ from row to row."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gemma_server.engine.plan import Chunk, Copy, Plan, Row
from gemma_server.engine.request import SamplingParams, Token
from gemma_server.executor.dispatch_policy import ON_CPU
from gemma_server.private_directory import PrivateDirectory
from gemma_server.weights.orbax.gemma import OrbaxWeights
from testing.tiny import load_params, tiny_config, tiny_weights, write_orbax

pytestmark = pytest.mark.slow

NAME = "gemma2"  # the fewest layers that are of both kinds
SLOTS, CHUNK, STEPS = 4, 32, 4
KEPT = SLOTS  # a slot where no row runs
SAMPLED = SamplingParams(temperature=1.0, seed=11)
PROMPT = tuple(np.random.default_rng(0).integers(0, tiny_config(NAME).vocab, 20).tolist())
OTHER = tuple(np.random.default_rng(1).integers(0, tiny_config(NAME).vocab, 25).tolist())


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Decodes blocks of steps of that many rows, and nothing smaller."""
    from gemma_server.executor.compile_cache import CompileCache
    from gemma_server.executor.programs import Job, Name, Programs
    from gemma_server.executor.runner import JaxRunner

    class Few(Programs):
        def jobs(self) -> Iterator[Job]:
            return (job for job in super().jobs() if not is_smaller(job.name))

    def is_smaller(name: Name) -> bool:
        return name[0] == "decode" and name[1:3] != (SLOTS, STEPS)

    path = tmp_path_factory.mktemp("tiny")
    policy = replace(ON_CPU, steps=STEPS)
    fixed: dict[str, Any] = {"context_length": 64, "dtype": np.dtype("float32"), "policy": policy}
    programs = Few(tiny_config(NAME), slots=SLOTS, kept=1, chunks=(CHUNK,), **fixed)
    programs.compile(
        lambda share: None, CompileCache(PrivateDirectory(path), programs.configuration)
    )
    source = OrbaxWeights(write_orbax(path / "checkpoint", tiny_weights(NAME)))
    return JaxRunner(programs, load_params(source, programs.config))


def read_prompt(runner: Any, slot: int, ids: tuple[int, ...], offset: int = 0) -> Token:
    """Read ids[offset:] into a slot, and return the token behind it."""
    chunk = Chunk(slot, slot, offset, ids[offset:], SAMPLED)
    token: Token = runner.dispatch(Plan(chunk, ())).read().prefill
    return token


def decode(runner: Any, *rows: Row) -> list[list[int]]:
    """Two rows at least, for which there is a program."""
    found = runner.dispatch(Plan(None, rows)).read().decode
    return [[token.id for token in tokens] for tokens in found]


def row(slot: int, position: int, steps: int = STEPS) -> Row:
    return Row(slot, slot, position, SAMPLED, steps=steps)


def test_a_copied_slot_goes_on_as_its_source_does(runner: Any) -> None:
    first = read_prompt(runner, 0, PROMPT)
    read_prompt(runner, 2, OTHER)  # what the copy overwrites, and what stays behind it
    keep = len(PROMPT) - 1
    runner.dispatch(Plan(None, (), (Copy(0, 2, keep),)))
    assert read_prompt(runner, 2, PROMPT, keep) == first
    mine, copied = decode(runner, row(0, len(PROMPT)), row(2, len(PROMPT)))
    assert mine == copied


def test_a_text_that_was_kept_comes_back(runner: Any) -> None:
    first, keep = read_prompt(runner, 0, PROMPT), len(PROMPT) - 1
    expected = decode(runner, row(0, len(PROMPT)), row(0, len(PROMPT)))[0]
    runner.dispatch(Plan(None, (), (Copy(0, KEPT, keep),)))
    for slot in range(SLOTS):
        read_prompt(runner, slot, OTHER)
    decode(runner, row(0, len(OTHER)), row(1, len(OTHER)), row(2, len(OTHER)))  # and padding
    runner.dispatch(Plan(None, (), (Copy(KEPT, 1, keep),)))
    assert read_prompt(runner, 1, PROMPT, keep) == first
    assert decode(runner, row(1, len(PROMPT)), row(0, len(OTHER)))[0] == expected


def test_a_copy_of_a_part_leaves_the_source_alone(runner: Any) -> None:
    read_prompt(runner, 0, PROMPT)
    expected = decode(runner, row(0, len(PROMPT)), row(0, len(PROMPT)))[0]
    read_prompt(runner, 0, PROMPT)
    longer = PROMPT[:7] + OTHER[7:]
    alone = read_prompt(runner, 1, longer)
    runner.dispatch(Plan(None, (), (Copy(0, 3, 7),)))
    assert read_prompt(runner, 3, longer, 7) == alone
    found = decode(runner, row(0, len(PROMPT)), row(1, len(longer)), row(3, len(longer)))
    assert found[0] == expected
    assert found[1] == found[2]


def test_rows_with_fewer_steps_go_on_where_they_stopped(runner: Any) -> None:
    for slot in (0, 1):
        read_prompt(runner, slot, PROMPT)
    whole, begun = decode(runner, row(0, len(PROMPT)), row(1, len(PROMPT), steps=1))
    assert (len(whole), len(begun)) == (STEPS, 1)
    [_, rest] = decode(runner, row(0, len(PROMPT) + STEPS), row(1, len(PROMPT) + 1, steps=3))
    assert begun + rest == whole
