"""The KV cache: per layer, the keys and values of every slot at every position."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gemma_server.model.config import GemmaConfig


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
            self.k.at[where].set(k.astype(self.k.dtype), mode="drop"),
            self.v.at[where].set(v.astype(self.v.dtype), mode="drop"),
        )


Cache = tuple[LayerCache, ...]


def empty_cache(config: GemmaConfig, slots: int, length: int, dtype: DTypeLike) -> Cache:
    """A zeroed cache of `slots` rows and `length` positions for every layer."""
    shape = (slots, config.kv_heads, length, config.head_dim)
    return tuple(
        LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers)
    )
