"""Every program that serving needs, compiled from shapes alone, before any weight is read."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemma_server.executor.compile_cache import CompileCache
from gemma_server.executor.dispatch_policy import ON_CPU, DispatchPolicy
from gemma_server.executor.operands import COPY_WORDS, ROW_WORDS, chunk_words
from gemma_server.executor.steps import State, Steps
from gemma_server.executor.variants import (
    EVERYTHING,
    EVERYTHING_SAMPLED,
    GREEDY,
    SAMPLING,
    ProgramVariant,
    least_of,
)
from gemma_server.model.config import GemmaConfig
from gemma_server.model.masks import mask_words
from gemma_server.model.numerics import Numerics
from gemma_server.model.stored_as import StoredAs
from gemma_server.model.transformer import Params, Transformer, abstract_params

BLOCK = 256  # cached positions that attention reads at a time

SCRATCH = "scratch_bytes"  # the name under which these are noted

Name = tuple[str | int, ...]  # what a program does, and all that its shapes depend on


class Job(NamedTuple):
    """A program to compile. It takes the weights, if it reads them, the state and operands."""

    name: Name
    body: Callable[..., Any]
    operands: tuple[jax.ShapeDtypeStruct, ...]
    reads_weights: bool = True


class Programs:
    """The programs of one configuration.

    The cache has `kept` slots beyond those that rows use. The weights' dtype is int8, float32 or
    bfloat16; `native` says that the kernels may be used, `own_table` what `Numerics` says.
    `chunks` are the sizes of the prefill programs, if they are not the policy's.
    """

    def __init__(
        self,
        config: GemmaConfig,
        *,
        slots: int,
        kept: int = 0,
        context_length: int,
        dtype: Any,
        native: bool = False,
        own_table: StoredAs | None = None,
        policy: DispatchPolicy = ON_CPU,
        chunks: tuple[int, ...] | None = None,
    ) -> None:
        self.config, self.slots, self.dtype, self.policy = config, slots, dtype, policy
        self.cache_slots = slots + kept
        self.chunks = chunks or chunks_for(context_length, policy)
        self.length = cache_length(context_length)
        # Without branches no loop's length may depend on data: one block is the whole cache.
        block = BLOCK if policy.branches else self.length
        model = Transformer(config, Numerics(dtype, block, native, own_table))
        self._steps = Steps(model, self.cache_slots, self.length, branches=policy.branches)
        self._compiled: dict[Name, Any] = {}

    def compile(self, progress: Callable[[float], None], cache: CompileCache) -> None:
        """Compile all programs, or read the kept ones; `progress` gets the share done, 0 to 1."""
        jobs = list(self.jobs())
        for done, job in enumerate(jobs):
            name = "_".join(map(str, job.name))
            self._compiled[job.name] = cache.get(name, partial(self._compile, job))
            progress((done + 1) / len(jobs))
        cache.note(SCRATCH, self.scratch_bytes)

    @property
    def configuration(self) -> str:
        """All that the programs depend on, except the code."""
        fixed = (self.slots, self.cache_slots, self.length, str(self.dtype), self.policy)
        return f"{self.config} {fixed} {self._steps.model}"

    def jobs(self) -> Iterator[Job]:
        """What to compile."""
        for variant, size in product(self.prefill_variants, self.chunks):
            body = partial(self._steps.prefill, variant=variant)
            operands = _i32(chunk_words(size)), _i32(1, self.mask_words)
            yield Job(("prefill", size, str(variant)), body, operands)
        counts = product(self.decode_variants, self.row_counts, self.step_counts)
        for variant, rows, steps in counts:
            body = partial(self._steps.decode, steps=steps, variant=variant)
            operands = _i32(rows, ROW_WORDS), _i32(rows, self.mask_words)
            yield Job(("decode", rows, steps, str(variant)), body, operands)
        yield Job(("copy",), self._steps.copy, (_i32(COPY_WORDS),), reads_weights=False)

    @property
    def prefill_variants(self) -> tuple[ProgramVariant, ...]:
        """The variants of prefill, from cheap to expensive. With branches one program does all."""
        if self.policy.branches:
            return (EVERYTHING,)
        return (GREEDY, SAMPLING, EVERYTHING_SAMPLED, EVERYTHING)

    @property
    def decode_variants(self) -> tuple[ProgramVariant, ...]:
        """The variants of decode, which scores no prompt, from cheap to expensive."""
        if self.policy.branches:
            return (EVERYTHING_SAMPLED,)
        return (GREEDY, SAMPLING, EVERYTHING_SAMPLED)

    @property
    def row_counts(self) -> list[int]:
        """How many rows the decode programs take."""
        return row_counts(self.slots)

    @property
    def step_counts(self) -> list[int]:
        """How many steps the decode programs run."""
        return sorted({1, self.policy.steps})

    @property
    def memory_bytes(self) -> int:
        """Of the weights and the state."""
        return bytes_of((self._weights, self._state))

    @property
    def scratch_bytes(self) -> int:
        """What the compiled programs take beside what they are given; one runs at a time."""
        return scratch_bytes(self._compiled.values())

    def new_state(self) -> State:
        """An empty cache and greedy slots; this compiles a program that is not kept."""
        state: State = jax.jit(self._steps.new_state)()
        return state

    def prefill(self, size: int, needed: ProgramVariant) -> Any:
        """The program that reads `size` tokens and covers `needed`."""
        return self._compiled["prefill", size, str(least_of(self.prefill_variants, needed))]

    def decode(self, rows: int, steps: int, needed: ProgramVariant) -> Any:
        """The program that samples `steps` tokens in each of `rows` rows and covers `needed`."""
        return self._compiled["decode", rows, steps, str(least_of(self.decode_variants, needed))]

    @property
    def mask_words(self) -> int:
        """How many words a mask has."""
        return mask_words(self.config.vocab)

    @property
    def copy(self) -> Any:
        """The program that copies one slot's positions into another's."""
        return self._compiled[("copy",)]

    def _compile(self, job: Job) -> Any:
        shapes = (self._weights, self._state) if job.reads_weights else (self._state,)
        donated = len(shapes) - 1  # the state, which the program may overwrite
        return jax.jit(job.body, donate_argnums=donated).lower(*shapes, *job.operands).compile()

    @cached_property
    def _weights(self) -> Params:
        """Their shapes, without tracing the model, which would slow down a warm start."""
        return abstract_params(self.config, self.dtype, self._steps.model.numerics.own_table)

    @cached_property
    def _state(self) -> State:
        """Its shapes."""
        shapes: State = jax.eval_shape(self._steps.new_state)
        return shapes


def bytes_of(shapes: Any) -> int:
    """The bytes of all arrays in a tree of shapes."""
    return sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(shapes)
    )


def scratch_bytes(compiled: Iterable[Any]) -> int:
    """The memory of programs that run one at a time, beside their operands: their code, and the
    most that one of them takes for what it computes; nothing where XLA does not tell."""
    found = [each.memory_analysis() for each in compiled]
    known = [each for each in found if each is not None]
    code = sum(int(each.generated_code_size_in_bytes) for each in known)
    return code + max((int(each.temp_size_in_bytes) for each in known), default=0)


def cache_length(context_length: int) -> int:
    """How many positions a slot has: whole blocks."""
    return -(-context_length // BLOCK) * BLOCK


def chunks_for(context_length: int, policy: DispatchPolicy) -> tuple[int, ...]:
    """The chunk sizes for a context: all that are shorter, and the first that is not."""
    shorter = [size for size in policy.chunks if size < context_length]
    return policy.chunks[: len(shorter) + 1]


def row_counts(slots: int) -> list[int]:
    """The row counts that decode is compiled for: 1, 4, 8, 16, ... and all slots, if >= 4.

    XLA:CPU multiplies two or three rows more slowly than four. With one slot the others of four
    are for drafts.
    """
    powers = (1 << n for n in range(2, slots.bit_length()))
    return sorted({1, *(rows for rows in powers if rows < slots), max(slots, 4)})


def _i32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
