"""Executes plans: picks their programs, uploads their operands, keeps the state."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma_server.engine.plan import Chunk, Copy, Plan, Row
from gemma_server.engine.request import SamplingParams
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.executor.operands import pack_chunk, pack_copy, pack_masks, pack_rows
from gemma_server.executor.programs import Programs
from gemma_server.executor.results import PendingTokens
from gemma_server.executor.variants import ProgramVariant, needed_by
from gemma_server.model.transformer import Params


class JaxRunner:
    """Executes plans on the device with one set of weights and one cache.

    `counter` counts what compiles in a dispatch, though nothing should.
    """

    def __init__(
        self, programs: Programs, params: Params, counter: CompileCounter | None = None
    ) -> None:
        self._programs = programs
        self._counter = counter or CompileCounter()
        self._params = params
        self._state = programs.new_state()
        self._no_masks: dict[int, jax.Array] = {}  # by the number of rows
        self._nothing = jnp.zeros((), jnp.bool_)
        self._do_nothing = jax.jit(jnp.logical_not).lower(self._nothing).compile()

    def warm_up(self) -> None:
        """Run every program once, in a slot that the first request will overwrite."""
        programs, how = self._programs, SamplingParams()
        for variant, size in product(programs.prefill_variants, programs.chunks):
            np.asarray(self._prefill(Chunk(0, 0, 0, (0,) * size, how), variant))
        counts = product(programs.decode_variants, programs.row_counts, programs.step_counts)
        for variant, count, steps in counts:
            rows = (Row(0, 0, 0, how, steps=steps),) * count
            np.asarray(self._decode(rows, steps, variant))
        self._copy(Copy(0, 0, 1))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on the device."""
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self._params))

    @property
    def token_bytes(self) -> int:
        """Bytes of the cache for one position of one slot, over all layers."""
        positions = self._programs.cache_slots * self._programs.length
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self._state.cache)) // positions

    def dispatch(self, plan: Plan) -> PendingTokens:
        """Start the plan's copies, its prefill chunk and its decode rows, in this order."""
        with self._counter.blamed():
            for copy in plan.copies:
                self._copy(copy)
            chunk, rows = plan.prefill, plan.decode
            prefill = self._prefill(chunk, needed_by((chunk,))) if chunk is not None else None
            decode = self._decode(rows, plan.steps, needed_by(rows)) if rows else None
            return PendingTokens(plan, prefill, decode)

    def touch(self) -> None:
        """Run a trivial program, and fetch its result."""
        np.asarray(self._do_nothing(self._nothing))

    def _copy(self, copy: Copy) -> None:
        self._state = self._programs.copy(self._state, pack_copy(copy))

    def _prefill(self, chunk: Chunk, needed: ProgramVariant) -> jax.Array:
        size = next(size for size in self._programs.chunks if size >= len(chunk.token_ids))
        program, masks = self._programs.prefill(size, needed), self._masks([chunk.mask], 1)
        return self._run(program, pack_chunk(chunk, size), masks)

    def _decode(self, rows: tuple[Row, ...], steps: int, needed: ProgramVariant) -> jax.Array:
        programs = self._programs
        fed = sum(row.fed for row in rows)
        count = next(count for count in programs.row_counts if count >= fed)
        most = next(most for most in programs.step_counts if most >= steps)
        beyond = programs.cache_slots, programs.length  # where all writes are dropped
        masks = self._masks([mask for row in rows for mask in row.masks], count)
        return self._run(
            programs.decode(count, most, needed), pack_rows(rows, count, beyond), masks
        )

    def _masks(self, masks: Sequence[bytes | None], count: int) -> Any:
        """The operand for so many rows; on the device already where no row has a mask."""
        words = self._programs.mask_words
        if any(mask is not None for mask in masks):
            return pack_masks(masks, count, words)
        if count not in self._no_masks:
            self._no_masks[count] = jnp.zeros((count, words), jnp.int32)
        return self._no_masks[count]

    def _run(self, program: Any, *operands: Any) -> jax.Array:
        self._state, sampled = program(self._params, self._state, *operands)
        array: jax.Array = sampled
        array.copy_to_host_async()  # the copy overlaps with the next programs
        return array
