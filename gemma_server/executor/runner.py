"""The only place that compiles and runs the model: plans in, ids out."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import product
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike

from gemma_server.engine.plan import Chunk, Plan, Row
from gemma_server.engine.request import MAX_TOP_LOGPROBS, SamplingOptions
from gemma_server.executor.compile_cache import Executables
from gemma_server.executor.dispatch_policy import ON_CPU, Pace
from gemma_server.executor.operands import (
    ROW_WORDS,
    Settings,
    chunk_words,
    pack_chunk,
    pack_rows,
    pack_settings,
    unpack_chunk,
    unpack_settings,
)
from gemma_server.executor.results import PendingTokens
from gemma_server.executor.variants import Kind
from gemma_server.model.cache import Cache, empty_cache
from gemma_server.model.config import GemmaConfig
from gemma_server.model.logprobs import score_words, scored, unscored
from gemma_server.model.sampling import Adjusted, Choose, always, never, sample
from gemma_server.model.transformer import Params, Transformer, abstract_params

CHUNKS = (8, 32, 128, 256)  # prompt tokens of the prefill programs; the last is the largest plan
BLOCK = 256  # cached positions that attention reads at a time
SCORED = 8  # prompt tokens whose logits are there at once
_TOP = MAX_TOP_LOGPROBS

Name = tuple[str | int | bool, ...]  # of a program: what it does, and all that its shapes depend on


class State(NamedTuple):
    """What stays on the device between programs."""

    cache: Cache
    tokens: jax.Array  # [slots, S] i32: the ids of prompt and answer by position
    settings: jax.Array  # [slots + 1, words] i32; the last, of padding rows, is never written


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
        return jax.jit(function, donate_argnums=1).lower(*self._shapes, operand).compile()

    @cached_property
    def _shapes(self) -> tuple[Params, State]:
        """Of the weights and the state; tracing the model for them is not for a warm start."""
        return abstract_params(self.config, self.dtype), jax.eval_shape(self.new_state)

    @property
    def configuration(self) -> str:
        """All that the programs depend on beside the code."""
        fixed = (self.slots, self.length, str(self.dtype), self.pace)
        return f"{self.config} {fixed} {self._model}"

    def jobs(self) -> Iterator[tuple[Name, Callable[..., Any], tuple[int, ...]]]:
        """What to compile: each program's name, function, and the shape of its last operand."""
        for kind, size in product(self.kinds, CHUNKS):
            prefill = partial(self._prefill, kind=kind)
            yield ("prefill", size, kind.name), prefill, (chunk_words(size),)
        for kind, rows, steps in product(
            self.decode_kinds, row_counts(self.slots), self.step_counts
        ):
            decode = partial(self._decode, steps=steps, kind=kind)
            yield ("decode", rows, steps, kind.name), decode, (rows, ROW_WORDS)

    @property
    def kinds(self) -> list[Kind]:
        """Of prefill. Without branches each takes programs of its own; with them one does all."""
        return [Kind.SCORING] if self.pace.branches else list(Kind)

    @property
    def decode_kinds(self) -> list[Kind]:
        """The same of decode."""
        return [Kind.FULL] if self.pace.branches else [Kind.GREEDY, Kind.RANDOM, Kind.FULL]

    @property
    def step_counts(self) -> list[int]:
        """How many tokens a row can draw in one plan."""
        return sorted({1, self.pace.steps})

    def prefill(self, size: int, kind: Kind) -> Any:
        """The program that reads `size` tokens."""
        return self._compiled["prefill", size, max(kind, self.kinds[0]).name]

    def decode(self, rows: int, steps: int, kind: Kind) -> Any:
        """The program in which so many rows draw so many tokens."""
        return self._compiled["decode", rows, steps, max(kind, self.decode_kinds[0]).name]

    def _choose(self, kind: Kind, needed: Kind) -> Choose:
        """How a program of one kind does what is the matter of another."""
        if self.pace.branches:
            return jax.lax.cond
        return always if kind >= needed else never

    def new_state(self) -> State:
        """Nothing cached, and greedy slots."""
        default = pack_settings(Chunk(0, 0, 0, (), None))
        return State(
            empty_cache(self.config, self.slots, self.length, self.dtype),
            jnp.zeros((self.slots, self.length), jnp.int32),
            jnp.tile(default, (self.slots + 1, 1)),
        )

    def _prefill(
        self, params: Params, state: State, words: jax.Array, *, kind: Kind
    ) -> tuple[State, jax.Array]:
        """Read a chunk into its slot, draw the token behind it if it is to be drawn, and score the
        ids that follow its tokens if they are to be: [1 + T, words] i32."""
        chunk = unpack_chunk(words)
        slots, index = chunk.slot[None], jnp.arange(chunk.tokens.shape[0])
        at = jnp.where(index < chunk.filled, chunk.offset + index, self.length)
        hidden, cache = self._forward(params, chunk.tokens[None], at[None], state.cache, slots)
        tokens = state.tokens.at[chunk.slot, at].set(chunk.tokens, mode="drop")
        settings = unpack_settings(chunk.settings[None])
        behind = (chunk.offset + chunk.filled)[None]
        last = jax.lax.dynamic_slice_in_dim(hidden[0], chunk.filled - 1, 1)  # [1, D]
        drawn = (jax.lax.cond if self.pace.branches else always)(
            chunk.draw,
            lambda: self._draw(params, last, settings, behind, (tokens, slots), kind),
            lambda: jnp.zeros((1, score_words(_TOP)), jnp.int32),
        )
        prompt = self._choose(kind, Kind.SCORING)(
            chunk.score,
            lambda: self._scored(params, hidden[0], chunk.scored),
            lambda: unscored(chunk.scored, _TOP),
        )
        state = State(
            cache,
            tokens.at[slots, behind].set(drawn[:, 0], mode="drop"),
            state.settings.at[chunk.slot].set(chunk.settings),
        )
        return state, jnp.concatenate([drawn, prompt])

    def _scored(self, params: Params, hidden: jax.Array, ids: jax.Array) -> jax.Array:
        """The words of ids [T] that follow hidden [T, D], some at a time: [T, words]."""

        def score(block: tuple[jax.Array, jax.Array]) -> jax.Array:
            # Without the barrier XLA:CPU converts a bfloat16 table once, whole, outside the loop.
            table, block = jax.lax.optimization_barrier((params["embedder"], block))
            return scored(self._logits({"embedder": table}, block[0]), block[1], _TOP)

        blocks = hidden.reshape(-1, SCORED, hidden.shape[-1]), ids.reshape(-1, SCORED)
        return cast(jax.Array, jax.lax.map(score, blocks)).reshape(ids.shape[0], -1)

    def _draw(
        self,
        params: Params,
        hidden: jax.Array,
        settings: Settings,
        positions: jax.Array,
        texts: tuple[jax.Array, jax.Array],
        kind: Kind,
    ) -> jax.Array:
        """The tokens for positions [B] behind hidden [B, D]: [B, words] i32.

        Texts are all slots' tokens, and the rows' slots.
        """
        logits = self._logits(params, hidden)
        tokens, slots = texts
        full = self._choose(kind, Kind.FULL)
        given = Adjusted(
            logits, settings.adjustment, lambda: tokens.at[slots].get(mode="clip"), full
        )
        ids = sample(given, settings.how, positions, self._choose(kind, Kind.RANDOM))
        return full(
            jnp.any(settings.logprobs),
            lambda: scored(logits, ids, _TOP),
            lambda: unscored(ids, _TOP),
        )

    def _decode(
        self,
        params: Params,
        state: State,
        rows: jax.Array,
        *,
        steps: int,
        kind: Kind,
    ) -> tuple[State, jax.Array]:
        """Feed each row's last token at its position, draw the next, and so on:
        [steps, B, words] i32.

        Padding rows have a slot and a position beyond the end, where all writes are dropped; so
        has every row that comes to the end.
        """
        slots, positions = rows[:, 0], rows[:, 1]
        settings = unpack_settings(state.settings[slots])

        def step(
            carry: tuple[Cache, jax.Array], index: jax.Array | int
        ) -> tuple[tuple[Cache, jax.Array], jax.Array]:
            cache, tokens = carry
            at = positions + index
            fed = tokens.at[slots, at].get(mode="clip")
            hidden, cache = self._forward(params, fed[:, None], at[:, None], cache, slots)
            drawn = self._draw(params, hidden[:, 0], settings, at + 1, (tokens, slots), kind)
            return (cache, tokens.at[slots, at + 1].set(drawn[:, 0], mode="drop")), drawn

        carry = state.cache, state.tokens
        if steps == 1:
            carry, one = step(carry, 0)
            drawn = one[None]
        else:
            carry, drawn = jax.lax.scan(step, carry, jnp.arange(steps))
        return State(*carry, state.settings), drawn

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
        self._state: State = jax.jit(programs.new_state)()
        self._nothing = jnp.zeros((), jnp.bool_)
        self._do_nothing = jax.jit(jnp.logical_not).lower(self._nothing).compile()

    def warm_up(self) -> None:
        """Run every program once, in a slot that the first request will overwrite."""
        programs, how = self._programs, SamplingOptions()
        for kind, size in product(programs.kinds, CHUNKS):
            np.asarray(self._prefill(Chunk(0, 0, 0, (0,) * size, how), kind))
        counts = row_counts(programs.slots)
        for kind, count, steps in product(programs.decode_kinds, counts, programs.step_counts):
            np.asarray(self._decode((Row(0, 0, 0, how),) * count, steps, kind))

    @property
    def weight_bytes(self) -> int:
        """What the weights take on the device, all leaves together."""
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self._params))

    @property
    def token_bytes(self) -> int:
        """What one position of one slot takes in the cache, all layers together."""
        positions = self._programs.slots * self._programs.length
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self._state.cache)) // positions

    def dispatch(self, plan: Plan) -> "PendingTokens":
        """Start the plan's prefill chunk and its decode rows, in this order."""
        chunk, rows = plan.prefill, plan.decode
        prefill = self._prefill(chunk, Kind.of(chunk)) if chunk is not None else None
        decode = self._decode(rows, plan.steps, max(map(Kind.of, rows))) if rows else None
        return PendingTokens(plan, prefill, decode)

    def touch(self) -> None:
        """Run the least of programs, and fetch what it returns."""
        np.asarray(self._do_nothing(self._nothing))

    def _prefill(self, chunk: Chunk, kind: Kind) -> jax.Array:
        size = next(size for size in CHUNKS if size >= len(chunk.token_ids))
        return self._run(self._programs.prefill(size, kind), pack_chunk(chunk, size))

    def _decode(self, rows: tuple[Row, ...], steps: int, kind: Kind) -> jax.Array:
        programs = self._programs
        count = next(count for count in row_counts(programs.slots) if count >= len(rows))
        beyond = programs.slots, programs.length  # where all writes are dropped
        return self._run(programs.decode(count, steps, kind), pack_rows(rows, count, beyond))

    def _run(self, program: Any, operand: npt.NDArray[np.int32]) -> jax.Array:
        self._state, drawn = program(self._params, self._state, operand)
        array: jax.Array = drawn
        array.copy_to_host_async()  # ready to be read while the device goes on
        return array


def row_counts(slots: int) -> list[int]:
    """The row counts that decode is compiled for: 1, 4, 8, 16, ... and all slots.

    XLA:CPU multiplies two or three rows more slowly than four.
    """
    if slots == 1:
        return [1]
    powers = (1 << n for n in range(2, slots.bit_length()))
    return sorted({1, *(rows for rows in powers if rows < slots), max(slots, 4)})
