"""The only place that compiles and runs the model: plans in, ids out."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import product
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike

from gemma_server.engine.executables import Executables
from gemma_server.engine.operands import WORDS, chunk_words, pack, pack_chunk, unpack, unpack_chunk
from gemma_server.engine.pace import ON_CPU, Pace
from gemma_server.engine.plan import Chunk, Plan, Row, StepResult
from gemma_server.engine.request import SamplingOptions
from gemma_server.model.cache import Cache, empty_cache
from gemma_server.model.config import GemmaConfig
from gemma_server.model.sampling import Choose, always, never, sample
from gemma_server.model.transformer import Params, Transformer, abstract_params

CHUNKS = (8, 32, 128, 256)  # prompt tokens of the prefill programs; the last is the largest plan
BLOCK = 256  # cached positions that attention reads at a time
_GREEDY = SamplingOptions()

Name = tuple[str | int | bool, ...]  # of a program: what it does, and all that its shapes depend on


class Programs:
    """Every program that serving needs, compiled from shapes alone, before any weight is there."""

    def __init__(
        self,
        config: GemmaConfig,
        *,
        slots: int,
        context_length: int,
        dtype: DTypeLike,
        native: bool = False,
        pace: Pace = ON_CPU,
    ) -> None:
        self.config, self.slots, self.dtype, self.pace = config, slots, dtype, pace
        self.length = -(-context_length // BLOCK) * BLOCK
        # Without branches no loop may end where its data say: one block is the whole cache.
        block = BLOCK if pace.branches else self.length
        self._model = Transformer(config, dtype, block, native)
        self._compiled: dict[Name, Any] = {}

    def compile(self, progress: Callable[[float], None], kept: Executables) -> None:
        """Compile the whole list, or read what is kept of it; `progress` gets the share done."""
        jobs = list(self.jobs())
        for done, (name, function, shape) in enumerate(jobs):
            self._compiled[name] = kept.get(
                "_".join(map(str, name)), partial(self._compile_one, function, shape)
            )
            progress((done + 1) / len(jobs))

    def _compile_one(self, function: Callable[..., Any], shape: tuple[int, ...]) -> Any:
        operand = jax.ShapeDtypeStruct(shape, jnp.int32)
        return jax.jit(function, donate_argnums=(1, 2)).lower(*self._shapes, operand).compile()

    @cached_property
    def _shapes(self) -> tuple[Params, Cache, jax.Array]:
        """Of the weights and the state; tracing the model for them is not for a warm start."""
        cache, last = jax.eval_shape(self.new_state)
        return abstract_params(self.config, self.dtype), cache, last

    @property
    def configuration(self) -> str:
        """All that the programs depend on beside the code."""
        fixed = (self.slots, self.length, str(self.dtype), self.pace)
        return f"{self.config} {fixed} {self._model}"

    def jobs(self) -> Iterator[tuple[Name, Callable[..., Any], tuple[int, ...]]]:
        """What to compile: each program's name, function, and the shape of its last operand."""
        for random in self.kinds:
            for size in CHUNKS:
                prefill = partial(self._prefill, choose=self._choose(random))
                yield ("prefill", size, random), prefill, (chunk_words(size),)
            for rows, steps in product(row_counts(self.slots), self.step_counts):
                decode = partial(self._decode, steps=steps, choose=self._choose(random))
                yield ("decode", rows, steps, random), decode, (rows, WORDS)

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Whether rows draw at random. Without branches that takes programs of its own."""
        return (False,) if self.pace.branches else (False, True)

    @property
    def step_counts(self) -> list[int]:
        """How many tokens a row can draw in one plan."""
        return sorted({1, self.pace.steps})

    def prefill(self, size: int, *, random: bool) -> Any:
        """The program that reads `size` tokens."""
        return self._compiled["prefill", size, random and not self.pace.branches]

    def decode(self, rows: int, steps: int, *, random: bool) -> Any:
        """The program in which so many rows draw so many tokens."""
        return self._compiled["decode", rows, steps, random and not self.pace.branches]

    def _choose(self, random: bool) -> Choose:
        if self.pace.branches:
            return jax.lax.cond
        return always if random else never

    def new_state(self) -> tuple[Cache, jax.Array]:
        """An empty cache, and each slot's last drawn token [slots]."""
        cache = empty_cache(self.config, self.slots, self.length, self.dtype)
        return cache, jnp.zeros(self.slots, jnp.int32)

    def _prefill(
        self, params: Params, cache: Cache, last: jax.Array, words: jax.Array, *, choose: Choose
    ) -> tuple[Cache, jax.Array, jax.Array]:
        """Read a chunk into its slot, and draw the token behind it if it is to be drawn."""
        row, filled, draw, tokens = unpack_chunk(words)
        index = jnp.arange(tokens.shape[0])
        positions = jnp.where(index < filled, row.positions[:, None] + index, self.length)
        hidden, cache = self._forward(params, tokens[None], positions, cache, row.slots)
        behind = jax.lax.dynamic_slice_in_dim(hidden[0], filled - 1, 1)  # [1, D]
        token = (jax.lax.cond if self.pace.branches else always)(
            draw,
            lambda: sample(self._logits(params, behind), row.how, row.positions + filled, choose),
            lambda: jnp.zeros(1, jnp.int32),
        )
        return cache, last.at[row.slots].set(token), token

    def _decode(
        self,
        params: Params,
        cache: Cache,
        last: jax.Array,
        words: jax.Array,
        *,
        steps: int,
        choose: Choose,
    ) -> tuple[Cache, jax.Array, jax.Array]:
        """Feed each row's last token at its position, draw the next, and so on: ids [steps, B].

        Padding rows have a slot and a position beyond the end, where all writes are dropped; so
        has every row that comes to the end.
        """
        slots, positions, how = unpack(words)

        def step(
            carry: tuple[Cache, jax.Array], index: jax.Array | int
        ) -> tuple[tuple[Cache, jax.Array], jax.Array]:
            cache, tokens = carry
            at = positions + index
            hidden, cache = self._forward(params, tokens[:, None], at[:, None], cache, slots)
            drawn = sample(self._logits(params, hidden[:, 0]), how, at + 1, choose)
            return (cache, drawn), drawn

        carry = cache, last.at[slots].get(mode="clip")
        if steps == 1:
            (cache, drawn), _ = step(carry, 0)
            ids = drawn[None]
        else:
            (cache, drawn), ids = jax.lax.scan(step, carry, jnp.arange(steps))
        return cache, last.at[slots].set(drawn, mode="drop"), ids

    def _forward(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        cache: Cache,
        slots: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        return cast(
            tuple[jax.Array, Cache],
            self._model.apply({"params": params}, tokens, positions, cache, slots),
        )

    def _logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        return cast(jax.Array, self._model.apply({"params": params}, hidden, method="logits"))


class JaxRunner:
    """Executes plans on the device with one set of weights and one cache."""

    def __init__(self, programs: Programs, params: Params) -> None:
        self._programs = programs
        self._params = params
        self._cache, self._last = jax.jit(programs.new_state)()

    def warm_up(self) -> None:
        """Run every program once, in a slot that the first request will overwrite."""
        programs = self._programs
        for random in programs.kinds:
            how = SamplingOptions(temperature=float(random))
            for size in CHUNKS:
                self.dispatch(Plan(Chunk(0, 0, 0, (0,) * size, how), ())).read()
            for count, steps in product(row_counts(programs.slots), programs.step_counts):
                rows = (Row(0, 0, 0, how),) * count
                self.dispatch(Plan(None, rows, steps)).read()

    @property
    def weight_bytes(self) -> int:
        """What the weights take on the device, all leaves together."""
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self._params))

    @property
    def token_bytes(self) -> int:
        """What one position of one slot takes in the cache, all layers together."""
        positions = self._programs.slots * self._programs.length
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self._cache)) // positions

    def dispatch(self, plan: Plan) -> "PendingTokens":
        """Start the plan's prefill chunk and its decode rows, in this order."""
        prefill = self._prefill(plan.prefill) if plan.prefill is not None else None
        decode = self._decode(plan.decode, plan.steps) if plan.decode else None
        return PendingTokens(plan, prefill, decode)

    def _prefill(self, chunk: Chunk) -> jax.Array:
        size = next(size for size in CHUNKS if size >= len(chunk.token_ids))
        random = chunk.sampling is not None and chunk.sampling.temperature > 0
        return self._run(self._programs.prefill(size, random=random), pack_chunk(chunk, size))

    def _decode(self, rows: tuple[Row, ...], steps: int) -> jax.Array:
        programs = self._programs
        count = next(count for count in row_counts(programs.slots) if count >= len(rows))
        filled = [(row.slot, row.position, row.sampling) for row in rows]
        padding = [(programs.slots, programs.length, _GREEDY)] * (count - len(rows))
        random = any(row.sampling.temperature > 0 for row in rows)
        return self._run(programs.decode(count, steps, random=random), pack(filled + padding))

    def _run(self, program: Any, operand: npt.NDArray[np.int32]) -> jax.Array:
        self._cache, self._last, drawn = program(self._params, self._cache, self._last, operand)
        array: jax.Array = drawn
        array.copy_to_host_async()  # ready to be read while the device goes on
        return array


class PendingTokens:
    """The ids of a dispatched plan, still on their way from the device."""

    def __init__(self, plan: Plan, prefill: jax.Array | None, decode: jax.Array | None) -> None:
        self._plan, self._prefill, self._decode = plan, prefill, decode

    def read(self) -> StepResult:
        """Wait for the device and fetch the ids."""
        first: int | None = None
        if self._prefill is not None:
            token = int(np.asarray(self._prefill)[0])
            assert self._plan.prefill is not None
            first = token if self._plan.prefill.sampling is not None else None
        rows = [] if self._decode is None else np.asarray(self._decode).T.tolist()
        return StepResult(first, tuple(map(tuple, rows[: len(self._plan.decode)])))


def row_counts(slots: int) -> list[int]:
    """The row counts that decode is compiled for: 1, 4, 8, 16, ... and all slots.

    XLA:CPU multiplies two or three rows more slowly than four.
    """
    if slots == 1:
        return [1]
    powers = (1 << n for n in range(2, slots.bit_length()))
    return sorted({1, *(rows for rows in powers if rows < slots), max(slots, 4)})
