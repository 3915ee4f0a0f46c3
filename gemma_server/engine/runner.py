"""The only place that compiles and runs the model: plans in, ids out."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike

from gemma_server.engine.executables import Executables
from gemma_server.engine.plan import Chunk, Plan, Row, StepResult
from gemma_server.engine.request import SamplingOptions
from gemma_server.model.cache import Cache, empty_cache
from gemma_server.model.config import GemmaConfig
from gemma_server.model.sampling import Sampling, sample
from gemma_server.model.transformer import Params, Transformer, abstract_params

CHUNKS = (8, 32, 128, 256)  # prompt tokens of the prefill programs; the last is the largest plan
BLOCK = 256  # cached positions that attention reads at a time
_GREEDY = SamplingOptions()


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
    ) -> None:
        self.config, self.slots, self.dtype = config, slots, dtype
        self.length = -(-context_length // BLOCK) * BLOCK
        # A GPU would wait for the host on every turn of a loop whose end is data.
        block = BLOCK if jax.default_backend() == "cpu" else self.length
        self._model = Transformer(config, dtype, block, native)
        self._compiled: dict[str, Any] = {}

    def compile(self, progress: Callable[[float], None], kept: Executables) -> None:
        """Compile the whole list, or read what is kept of it; `progress` gets the share done."""
        one = _sampling(1)
        jobs: list[tuple[str, Callable[..., Any], list[Any]]] = [
            (
                f"prefill_{size}",
                self._prefill,
                [_ints(size), _ints(), _ints(), _ints(), one, _bool()],
            )
            for size in CHUNKS
        ] + [
            (f"decode_{rows}", self._decode, [_ints(rows), _ints(rows), _sampling(rows)])
            for rows in row_counts(self.slots)
        ]
        for done, (name, function, shapes) in enumerate(jobs):

            def compile_it(function: Any = function, shapes: list[Any] = shapes) -> Any:
                jitted = jax.jit(function, donate_argnums=(1, 2))
                return jitted.lower(*self._shapes, *shapes).compile()

            self._compiled[name] = kept.get(name, compile_it)
            progress((done + 1) / len(jobs))

    @cached_property
    def _shapes(self) -> tuple[Params, Cache, jax.Array]:
        """Of the weights and the state; tracing the model for them is not for a warm start."""
        cache, last = jax.eval_shape(self.new_state)
        return abstract_params(self.config, self.dtype), cache, last

    @property
    def configuration(self) -> str:
        """All that the programs depend on beside the code."""
        fixed = (self.slots, self.length, str(self.dtype))
        return f"{self.config} {fixed} {self._model}"

    def __getitem__(self, name: str) -> Any:
        return self._compiled[name]

    def new_state(self) -> tuple[Cache, jax.Array]:
        """An empty cache, and each slot's last drawn token [slots]."""
        cache = empty_cache(self.config, self.slots, self.length, self.dtype)
        return cache, jnp.zeros(self.slots, jnp.int32)

    def _prefill(
        self,
        params: Params,
        cache: Cache,
        last: jax.Array,
        tokens: jax.Array,
        count: jax.Array,
        slot: jax.Array,
        offset: jax.Array,
        how: Sampling,
        draw: jax.Array,
    ) -> tuple[Cache, jax.Array, jax.Array]:
        """Read `count` of `tokens` [T] into a slot; draw the token behind them if `draw`."""
        index = jnp.arange(tokens.shape[0])
        positions = jnp.where(index < count, offset + index, self.length)
        slots = slot[None]
        hidden, cache = self._forward(params, tokens[None], positions[None], cache, slots)
        behind = jax.lax.dynamic_slice_in_dim(hidden[0], count - 1, 1)  # [1, D]
        token = jax.lax.cond(
            draw,
            lambda: sample(self._logits(params, behind), how, (offset + count)[None]),
            lambda: jnp.zeros(1, jnp.int32),
        )
        return cache, last.at[slots].set(token), token

    def _decode(
        self,
        params: Params,
        cache: Cache,
        last: jax.Array,
        slots: jax.Array,
        positions: jax.Array,
        how: Sampling,
    ) -> tuple[Cache, jax.Array, jax.Array]:
        """Feed each row's last token at its position and draw the next: slots [B] -> ids [B].

        Padding rows have a slot and a position beyond the end, where all writes are dropped.
        """
        tokens = last.at[slots].get(mode="clip")
        hidden, cache = self._forward(params, tokens[:, None], positions[:, None], cache, slots)
        drawn = sample(self._logits(params, hidden[:, 0]), how, positions + 1)
        return cache, last.at[slots].set(drawn, mode="drop"), drawn

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
        for size in CHUNKS:
            tokens = (0,) * size
            self.dispatch(Plan(Chunk(0, 0, 0, tokens, _GREEDY), ())).read()
        for count in row_counts(self._programs.slots):
            rows = tuple(Row(0, 0, 0, _GREEDY) for _ in range(count))
            self.dispatch(Plan(None, rows)).read()

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
        decode = self._decode(plan.decode) if plan.decode else None
        return PendingTokens(plan, prefill, decode)

    def _prefill(self, chunk: Chunk) -> jax.Array:
        count = len(chunk.token_ids)
        size = next(size for size in CHUNKS if size >= count)
        tokens = np.zeros(size, np.int32)
        tokens[:count] = chunk.token_ids
        draw = chunk.sampling is not None
        return self._step(
            f"prefill_{size}",
            tokens,
            np.int32(count),
            np.int32(chunk.slot),
            np.int32(chunk.offset),
            _rows_sampling([chunk.sampling or _GREEDY], 1),
            np.bool_(draw),
        )

    def _decode(self, rows: tuple[Row, ...]) -> jax.Array:
        size = next(size for size in row_counts(self._programs.slots) if size >= len(rows))
        slots = np.full(size, self._programs.slots, np.int32)
        positions = np.full(size, self._programs.length, np.int32)
        slots[: len(rows)] = [row.slot for row in rows]
        positions[: len(rows)] = [row.position for row in rows]
        how = _rows_sampling([row.sampling for row in rows], size)
        return self._step(f"decode_{size}", slots, positions, how)

    def _step(self, program: str, *operands: object) -> jax.Array:
        self._cache, self._last, drawn = self._programs[program](
            self._params, self._cache, self._last, *operands
        )
        array: jax.Array = drawn
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
        rows: list[int] = [] if self._decode is None else np.asarray(self._decode).tolist()
        return StepResult(first, tuple(rows[: len(self._plan.decode)]))


def row_counts(slots: int) -> list[int]:
    """The row counts that decode is compiled for: 1, 4, 8, 16, ... and all slots.

    XLA:CPU multiplies two or three rows more slowly than four.
    """
    if slots == 1:
        return [1]
    powers = (1 << n for n in range(2, slots.bit_length()))
    return sorted({1, *(rows for rows in powers if rows < slots), max(slots, 4)})


def _rows_sampling(options: list[SamplingOptions], rows: int) -> Sampling:
    """One NumPy row per option, greedy padding behind them."""
    padded = options + [_GREEDY] * (rows - len(options))

    def column(name: str, dtype: npt.DTypeLike) -> Any:
        return np.array([getattr(option, name) for option in padded], dtype)

    seeds = [divmod(option.seed, 1 << 32) for option in padded]
    return Sampling(
        column("temperature", np.float32),
        column("top_k", np.int32),
        column("top_p", np.float32),
        column("min_p", np.float32),
        np.array(seeds, np.uint32),  # type: ignore[arg-type]
    )


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _bool() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), jnp.bool_)


def _sampling(rows: int) -> Any:
    return jax.tree.map(
        lambda column: jax.ShapeDtypeStruct(column.shape, column.dtype), _rows_sampling([], rows)
    )
