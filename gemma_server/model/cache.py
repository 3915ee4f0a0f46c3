"""The KV cache: per layer, the keys and values of every slot at every position."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gemma_server.model.config import GemmaConfig, LayerConfig

# Beside 8-bit weights, which are for CPUs, the cache holds the bits of bfloat16 as integers: to
# write one bfloat16, XLA:CPU would turn the whole cache into float32 and back.
BITS = jnp.uint16


class LayerCache(NamedTuple):
    """Keys and values of one layer, each [slots, K, S, H].

    Local layers keep all S positions too: a ring of the window's size could not be rewound to
    the shorter prefix that a later request may share.
    """

    k: jax.Array
    v: jax.Array

    def write(self, k: jax.Array, v: jax.Array, slots: jax.Array, at: jax.Array) -> "LayerCache":
        """Put k and v [B, T, K, H] of rows `slots` [B] at positions `at` [B, T].

        Positions at or beyond S are dropped: that is how padding writes nothing.
        """
        where = (slots[:, None], slice(None), at)
        return LayerCache(
            self.k.at[where].set(_stored(k, self.k.dtype), mode="drop"),
            self.v.at[where].set(_stored(v, self.v.dtype), mode="drop"),
        )

    def block(self, slots: jax.Array, start: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        """Positions start .. start + length of each row's slot: k and v [B, K, length, H].

        `start` is one for all rows or [B].
        """
        starts = jnp.broadcast_to(start, slots.shape)

        def of_all(cached: jax.Array) -> jax.Array:
            _, kv_heads, _, head_dim = cached.shape

            def of_one(slot: jax.Array, start: jax.Array) -> jax.Array:
                sizes = (1, kv_heads, length, head_dim)
                return jax.lax.dynamic_slice(cached, (slot, 0, start, 0), sizes)[0]

            return _floats(jax.vmap(of_one)(slots, starts))

        return of_all(self.k), of_all(self.v)


Cache = tuple[LayerCache, ...]  # of `GemmaConfig.cached_layers`


def empty_cache(config: GemmaConfig, slots: int, length: int, weights: DTypeLike) -> Cache:
    """Zeros for `slots` rows and `length` positions of every layer with keys and values of its own.

    It has the dtype of the weights; beside 8-bit ones it holds bfloat16.
    """
    dtype = stored_dtype(weights)

    def zeros(layer: LayerConfig) -> LayerCache:
        shape = (slots, layer.kv_heads, length, layer.head_dim)
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    return tuple(zeros(config.layers[index]) for index in config.cached_layers)


def stored_dtype(weights: DTypeLike) -> np.dtype[Any]:
    """In what the cache holds its numbers beside such weights."""
    return np.dtype(BITS if weights == jnp.int8 else weights)


def copy_slot(
    layer: LayerCache, source: jax.Array, target: jax.Array, length: jax.Array, block: int
) -> LayerCache:
    """The layer's cache with the first `length` positions of one slot copied into another, in whole
    blocks of `block` positions. When one block is the whole cache there is no loop."""

    def copied(cached: jax.Array) -> jax.Array:
        _, heads, positions, width = cached.shape

        def copy_block(index: jax.Array | int, cached: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice(
                cached, (source, 0, index * block, 0), (1, heads, block, width)
            )
            return jax.lax.dynamic_update_slice(cached, part, (target, 0, index * block, 0))

        if block == positions:
            return copy_block(0, cached)
        blocks = (length + block - 1) // block
        every: jax.Array = jax.lax.fori_loop(0, blocks, copy_block, cached)
        return every

    return LayerCache(copied(layer.k), copied(layer.v))


def _stored(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    if dtype != BITS:
        return x.astype(dtype)
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), BITS)


def _floats(stored: jax.Array) -> jax.Array:
    if stored.dtype != BITS:
        return stored
    # A bfloat16 is the upper half of a float32.
    return jax.lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
