"""Our side of benchmarks.gpu: one model with random weights, through the runner."""

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp

from gemma_server.engine.plan import Chunk, PendingStep, Plan, Row
from gemma_server.engine.request import SamplingParams
from gemma_server.executor.compile_cache import CompileCache
from gemma_server.executor.dispatch_policy import ON_GPU
from gemma_server.executor.programs import Job, Name, Programs, row_counts
from gemma_server.executor.runner import JaxRunner
from gemma_server.executor.variants import GREEDY
from gemma_server.model.config import GemmaConfig
from gemma_server.model.transformer import Params, abstract_params
from gemma_server.private_directory import PrivateDirectory

PROMPT, CONTEXT = 512, 1024
BLOCKS, WARM_BLOCKS = 24, 4
REPEATS = 5
COPIED = 1 << 30
_GREEDY = SamplingParams()


class _Wanted(Programs):
    """The programs of a few names: compiling all that a server needs would take the time."""

    names: frozenset[Name] = frozenset()

    def jobs(self) -> Iterator[Job]:
        """Those of the list that are wanted."""
        return (job for job in super().jobs() if job.name in self.names)


def measure(
    config: GemmaConfig, batches: Sequence[int], *, blocks: int = BLOCKS, copied: int = COPIED
) -> Iterator[dict[str, Any]]:
    """Prefill, then decode with each number of rows."""
    about = {
        "device": jax.devices()[0].device_kind,
        "copy_gb_s": copy_speed(copied) / 1e9,
    }
    params = random_params(config)
    weights = sum(int(leaf.nbytes) for leaf in jax.tree.leaves(params))
    runner = make_runner(config, params, 1, ("prefill", ON_GPU.chunks[-1], str(GREEDY)))
    prefill_s = seconds_to_read(runner)
    yield about | {"prefill_s": prefill_s, "tok_s": PROMPT / prefill_s}
    for batch in batches:
        del runner  # its cache has to go before there is a larger one
        rows = next(rows for rows in row_counts(batch) if rows >= batch)
        runner = make_runner(config, params, batch, ("decode", rows, ON_GPU.steps, str(GREEDY)))
        step_s = seconds_per_step(runner, batch, blocks)
        seen = batch * cache_bytes(config, PROMPT + blocks * ON_GPU.steps // 2)
        speed = (weights + seen) / step_s / 1e9
        yield about | {
            "batch": batch,
            "step_s": step_s,
            "tok_s": batch / step_s,
            "of_copy": speed / about["copy_gb_s"],
        }


def make_runner(config: GemmaConfig, params: Params, slots: int, name: Name) -> JaxRunner:
    """A runner of which only one program will be asked."""
    programs = _Wanted(
        config, slots=slots, context_length=CONTEXT, dtype=jnp.bfloat16, policy=ON_GPU
    )
    programs.names = frozenset({name})
    with TemporaryDirectory() as directory:
        kept = CompileCache(PrivateDirectory(Path(directory)), programs.configuration)
        programs.compile(lambda share: None, kept)
    return JaxRunner(programs, params)


def seconds_per_step(runner: JaxRunner, batch: int, blocks: int) -> float:
    """The mean over blocks that are read so far behind as the engine does."""
    in_flight: deque[PendingStep] = deque()
    began = 0.0
    for block in range(-WARM_BLOCKS, blocks):
        if block == 0:
            while in_flight:
                in_flight.popleft().read()
            began = time.perf_counter()
        position = PROMPT + max(block, 0) * ON_GPU.steps
        rows = tuple(Row(0, slot, position, _GREEDY, steps=ON_GPU.steps) for slot in range(batch))
        in_flight.append(runner.dispatch(Plan(None, rows)))
        if len(in_flight) >= ON_GPU.max_in_flight:
            in_flight.popleft().read()
    while in_flight:
        in_flight.popleft().read()
    return (time.perf_counter() - began) / (blocks * ON_GPU.steps)


def seconds_to_read(runner: JaxRunner) -> float:
    """The median time from a prompt to its first token."""
    taken = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        for offset in range(0, PROMPT, ON_GPU.chunks[-1]):
            last = offset + ON_GPU.chunks[-1] == PROMPT
            ids = tuple(range(offset, offset + ON_GPU.chunks[-1]))
            chunk = Chunk(0, 0, offset, ids, _GREEDY if last else None)
            pending = runner.dispatch(Plan(chunk, ()))
        pending.read()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def cache_bytes(config: GemmaConfig, position: int) -> int:
    """What one row at that position has to read of its cache, in bfloat16."""
    owners = (config.layers[index] for index in config.cached_layers)
    return sum(
        min(layer.window or position, position) * 2 * layer.kv_heads * layer.head_dim * 2
        for layer in owners
    )


def random_params(config: GemmaConfig) -> Params:
    """Small random matrices; norms too, which start from 1."""
    key = jax.random.key(0)

    @partial(jax.jit, static_argnums=(0, 1))
    def leaf(shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.normal(key, shape, dtype) * 0.02

    abstract = abstract_params(config, jnp.bfloat16)
    params: Params = jax.tree.map(lambda found: leaf(found.shape, found.dtype), abstract)
    return params


def copy_speed(size: int) -> float:
    """Bytes a second that a copy reads and writes: the best of some."""
    source = jax.jit(lambda: jnp.zeros(size, jnp.uint8))()
    copy = jax.jit(lambda array: array + jnp.uint8(1))  # a plain copy may be no copy
    copy(source).block_until_ready()
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        copies = [copy(source) for _ in range(4)]
        copies[-1].block_until_ready()
        taken.append((time.perf_counter() - began) / len(copies))
    return 2 * size / min(taken)
