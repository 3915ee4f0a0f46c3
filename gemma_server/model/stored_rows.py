"""A table that stays as its file stores it: what reads a row widens it.

Formats: ggml-org/llama.cpp, ggml/src/ggml-common.h (block_q4_0 to block_q6_K) and ggml-quants.c
(dequantize_row_*).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gemma_server.model.stored_as import BLOCKS, StoredAs, row_bytes


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["units", "first"],
    meta_fields=["kind", "width"],
)
@dataclass(frozen=True)
class StoredRows:
    """Rows of `width` weights in units [U, bytes] u8; the first begins at unit `first`, [] i32.

    On a CPU the units may be a mapped file: only the pages of rows that were read are in memory.
    """

    units: jax.Array
    first: jax.Array
    kind: str
    width: int

    def rows(self, index: jax.Array) -> jax.Array:
        """Rows of the table: [...] indices -> [..., width] f32."""
        nbytes = row_bytes(self.kind, self.width)
        count = nbytes // self.units.shape[1]

        def stored(row: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(self.units, self.first + row * count, count)

        size = BLOCKS[self.kind][1]
        raw = jax.vmap(stored)(index.reshape(-1)).reshape(*index.shape, nbytes // size, size)
        return _WIDEN[self.kind](raw).reshape(*index.shape, self.width)


def blank_rows(layout: StoredAs, width: int) -> StoredRows:
    """A table of zeros."""
    units = jnp.zeros((layout.units, layout.unit), jnp.uint8)
    return StoredRows(units, jnp.int32(0), layout.kind, width)


def _numbers(raw: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Bytes [..., n] -> the numbers that they are, [..., n / size] f32."""
    size = jnp.dtype(dtype).itemsize
    pairs = raw.reshape(*raw.shape[:-1], -1, size) if size > 1 else raw
    return jax.lax.bitcast_convert_type(pairs, dtype).astype(jnp.float32)


def _parts(raw: jax.Array, *sizes: int) -> list[jax.Array]:
    """Blocks [..., bytes], cut into fields of these sizes and the rest."""
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return jnp.split(raw, ends, axis=-1)


def _fields(raw: jax.Array, bits: int, side_by_side: int) -> jax.Array:
    """Unsigned numbers of so many bits: [..., n] bytes -> [..., n * 8 / bits].

    Of each run of `side_by_side` bytes the lowest bits come first, then the next ones.
    """
    runs = raw.reshape(*raw.shape[:-1], -1, 1, side_by_side)
    shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)[:, None]
    return (runs >> shifts & (1 << bits) - 1).reshape(*raw.shape[:-1], -1)


def _plain(raw: jax.Array, *, bits: int) -> jax.Array:
    """Q4_0, Q5_0, Q8_0: a scale to 32 weights, whose middle is 0."""
    if bits == 8:
        scale, values = _parts(raw, 2)
        return _numbers(scale, jnp.float16) * _numbers(values, jnp.int8)
    scale, high, low = _parts(raw, 2, 4 if bits == 5 else 0)
    values = _fields(low, 4, 16)
    if bits == 5:
        values |= _fields(high, 1, 1) << 4
    return _numbers(scale, jnp.float16) * (values.astype(jnp.float32) - (1 << bits - 1))


def _k_with_least(raw: jax.Array, *, bits: int) -> jax.Array:
    """Q4_K, Q5_K: to 8 times 32 weights a scale and a least one, of 6 bits each."""
    scale, least_scale, packed, high, low = _parts(raw, 2, 2, 12, 32 if bits == 5 else 0)
    first, second, third = _parts(packed, 4, 4)
    scales = jnp.concatenate([first & 63, third & 15 | first >> 2 & 48], axis=-1)
    leasts = jnp.concatenate([second & 63, third >> 4 | second >> 2 & 48], axis=-1)
    values = _fields(low, 4, 32)
    if bits == 5:
        values |= _fields(high, 1, 32) << 4
    values = values.reshape(*values.shape[:-1], 8, 32).astype(jnp.float32)
    by = _numbers(scale, jnp.float16) * scales.astype(jnp.float32)
    less = _numbers(least_scale, jnp.float16) * leasts.astype(jnp.float32)
    return by[..., None] * values - less[..., None]


def _q6_k(raw: jax.Array) -> jax.Array:
    """To 16 times 16 weights of 6 bits a scale of 8 bits."""
    low, high, scales, scale = _parts(raw, 128, 64, 16)
    values = _fields(low, 4, 64) | _fields(high, 2, 32) << 4
    values = values.reshape(*values.shape[:-1], 16, 16).astype(jnp.float32) - 32
    by = _numbers(scale, jnp.float16) * _numbers(scales, jnp.int8)
    return by[..., None] * values


_WIDEN: dict[str, Callable[[jax.Array], jax.Array]] = {
    "F32": partial(_numbers, dtype=jnp.float32),
    "F16": partial(_numbers, dtype=jnp.float16),
    "BF16": partial(_numbers, dtype=jnp.bfloat16),
    "Q4_0": partial(_plain, bits=4),
    "Q5_0": partial(_plain, bits=5),
    "Q8_0": partial(_plain, bits=8),
    "Q4_K": partial(_k_with_least, bits=4),
    "Q5_K": partial(_k_with_least, bits=5),
    "Q6_K": _q6_k,
}
