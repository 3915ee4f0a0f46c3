"""Tokens with their logprobs as words, so that a program returns one array.

The words of a token are its id, the bits of its logprob, the `top` likeliest ids, and the bits of
their logprobs, likeliest first.
"""

import jax
import jax.numpy as jnp


def score_words(top: int) -> int:
    """How many words a token has."""
    return 2 + 2 * top


def scored(logits: jax.Array, ids: jax.Array, top: int) -> jax.Array:
    """Ids [B] and what the logits [B, V] f32 gave them: [B, words] i32."""
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    own = jnp.take_along_axis(logits, ids[:, None], axis=-1, mode="clip") - total
    values, likeliest = jax.lax.top_k(logits, top)
    words = (ids[:, None], _bits(own), likeliest, _bits(values - total))
    return jnp.concatenate(words, axis=-1)


def unscored(ids: jax.Array, top: int) -> jax.Array:
    """The words of ids [B] with zeros for the logprobs: [B, words] i32."""
    return jnp.zeros((ids.shape[0], score_words(top)), jnp.int32).at[:, 0].set(ids)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)
