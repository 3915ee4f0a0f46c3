"""The programs of a model that embeds texts, compiled from shapes alone, and what runs them."""

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemma_server.engine.embedding import Tokens, Vector
from gemma_server.executor.compile_cache import CompileCache
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.executor.dispatch_policy import ON_CPU, DispatchPolicy
from gemma_server.executor.programs import BLOCK, SCRATCH, bytes_of, scratch_bytes
from gemma_server.model.config import GemmaConfig
from gemma_server.model.numerics import Numerics
from gemma_server.model.transformer import Params, Transformer, abstract_params

SHORTEST = 16  # tokens of a padded text
_MOST_ROWS = 64
# Padded tokens of a step. On a CPU more at once would not be quicker, and others would wait longer.
_CPU_TOKENS, _GPU_TOKENS = 512, 16_384


class Size(NamedTuple):
    """The shape of one program's texts."""

    rows: int
    length: int  # tokens


class EmbeddingPrograms:
    """The programs of one configuration: for each padded length one on a CPU, which works through
    as many texts as there are; on a GPU one for a single text, and one for many side by side.

    On a CPU a text's bits do not depend on those beside it, since they are computed one by one.
    """

    def __init__(
        self,
        config: GemmaConfig,
        *,
        context_length: int,
        dtype: Any,
        native: bool = False,
        policy: DispatchPolicy = ON_CPU,
    ) -> None:
        self.config, self.dtype, self.policy = config, dtype, policy
        self.lengths = lengths_for(context_length)
        self._model = Transformer(config, Numerics(dtype, native=native))
        self._compiled: dict[Size, Any] = {}

    @property
    def configuration(self) -> str:
        """All that the programs depend on, except the code."""
        return f"{self.sizes} {self.policy} {self._model}"

    @property
    def sizes(self) -> list[Size]:
        """What to compile."""
        each = (
            {1, self.rows(length)} if not self.policy.branches else {self.rows(length)}
            for length in self.lengths
        )
        return [
            Size(rows, length)
            for length, counts in zip(self.lengths, each, strict=True)
            for rows in sorted(counts)
        ]

    def rows(self, length: int) -> int:
        """The most texts of this length in one step."""
        tokens = _CPU_TOKENS if self.policy.branches else _GPU_TOKENS
        return max(1, min(_MOST_ROWS, tokens // length))

    def compile(self, progress: Callable[[float], None], cache: CompileCache) -> None:
        """Compile all programs, or read the kept ones; `progress` gets the share done, 0 to 1."""
        weights = abstract_params(self.config, self.dtype)
        for done, size in enumerate(self.sizes):
            name = f"embed_{size.rows}_{size.length}"
            self._compiled[size] = cache.get(name, partial(self._compile, weights, size))
            progress((done + 1) / len(self.sizes))
        cache.note(SCRATCH, self.scratch_bytes)

    @property
    def memory_bytes(self) -> int:
        """Of the weights."""
        return bytes_of(abstract_params(self.config, self.dtype))

    @property
    def scratch_bytes(self) -> int:
        """What the compiled programs take beside what they are given; one runs at a time."""
        return scratch_bytes(self._compiled.values())

    def program(self, size: Size) -> Any:
        """The program for texts of this size."""
        return self._compiled[size]

    def _compile(self, weights: Params, size: Size) -> Any:
        tokens = jax.ShapeDtypeStruct(size, jnp.int32)
        lengths = jax.ShapeDtypeStruct((size.rows,), jnp.int32)
        body = self._one_by_one if self.policy.branches else self._side_by_side
        return jax.jit(body).lower(weights, tokens, lengths).compile()

    def _side_by_side(self, params: Params, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """Tokens [B, T], of which `lengths` [B] are the texts' -> embeddings [B, D] in f32."""
        embed: Any = partial(self._model.apply, {"params": params}, method="embed")
        vectors: jax.Array = embed(tokens, lengths)
        return vectors

    def _one_by_one(self, params: Params, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """The same; texts without a token, which are padding, are left out."""

        def embed(row: jax.Array, vectors: jax.Array) -> jax.Array:
            text = (jax.lax.dynamic_slice_in_dim(each, row, 1) for each in (tokens, lengths))
            vector = self._side_by_side(params, *text)
            return jax.lax.dynamic_update_slice_in_dim(vectors, vector, row, axis=0)

        none = jnp.zeros((tokens.shape[0], self.config.embedding_width), jnp.float32)
        vectors: jax.Array = jax.lax.fori_loop(0, (lengths > 0).sum(), embed, none)
        return vectors


class JaxEmbeddingRunner:
    """Embeds batches of texts on the device with one set of weights, as an `EmbeddingRunner`.

    `counter` counts what compiles in a step, though nothing should.
    """

    def __init__(
        self,
        programs: EmbeddingPrograms,
        params: Params,
        counter: CompileCounter | None = None,
    ) -> None:
        self._programs, self._params = programs, params
        self._counter = counter or CompileCounter()
        self.lengths = programs.lengths

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on the device."""
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self._params))

    def rows(self, length: int) -> int:
        """The most texts of this length in one step."""
        return self._programs.rows(length)

    def warm_up(self) -> None:
        """Run every program once."""
        for size in self._programs.sizes:
            rows = 1 if self._programs.policy.branches else size.rows
            self.embed([(0,) * size.length] * rows, size.length)

    def embed(self, texts: Sequence[Tokens], length: int) -> list[Vector]:
        """The embedding of each text."""
        sizes = (size for size in self._programs.sizes if size.length == length)
        size = next(size for size in sizes if size.rows >= len(texts))
        tokens, lengths = np.zeros(size, np.int32), np.zeros(size.rows, np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)], lengths[row] = text, len(text)
        with self._counter.blamed():
            vectors = np.asarray(self._programs.program(size)(self._params, tokens, lengths))
        return [array("f", vector.tobytes()) for vector in vectors[: len(texts)]]


def lengths_for(context_length: int) -> tuple[int, ...]:
    """The padded lengths for a context: powers of two, and at last the whole context, rounded up
    to what attention works on at a time."""
    lengths, last = [SHORTEST], max(SHORTEST, context_length)
    while lengths[-1] * 2 < last:
        lengths.append(lengths[-1] * 2)
    if last > BLOCK:
        last = -(-last // BLOCK) * BLOCK
    return tuple(sorted({*lengths, last}))
