"""From logits to token ids, on the device, with each row's own settings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NOT_FINITE = -1  # instead of a token id, where a row's logits hold NaN or infinity


class Sampling(NamedTuple):
    """How each row samples; every field has one entry per row."""

    temperature: jax.Array  # [B] f32; 0 is greedy, and then nothing else matters
    top_k: jax.Array  # [B] i32; 0 is off
    top_p: jax.Array  # [B] f32; 1 is off
    min_p: jax.Array  # [B] f32; 0 is off
    seed: jax.Array  # [B, 2] u32: the high and the low word


def sample(logits: jax.Array, how: Sampling, positions: jax.Array) -> jax.Array:
    """Draw one id per row: logits [B, V] f32, positions [B] of the tokens to draw -> [B] i32.

    Temperature, top-k, top-p and min-p apply in that order. The noise depends on (seed, position)
    alone, so neither the other rows nor the way the text was batched can change a row's draw.
    Greedy rows take the exact argmax; when all rows are greedy, nothing else is computed.
    """
    greedy = jnp.argmax(logits, axis=-1)
    drawn = jax.lax.cond(
        jnp.any(how.temperature > 0.0),
        lambda: jnp.where(how.temperature > 0.0, _draw(logits, how, positions), greedy),
        lambda: greedy,
    )
    # The largest logit is NaN when any logit is, and infinite when any is +infinity.
    finite = jnp.isfinite(logits.max(axis=-1))
    return jnp.where(finite, drawn, NOT_FINITE).astype(jnp.int32)


def _draw(logits: jax.Array, how: Sampling, positions: jax.Array) -> jax.Array:
    """The Gumbel-max draw from each row's filtered distribution: [B, V] -> [B]."""
    temperature = jnp.where(how.temperature > 0.0, how.temperature, 1.0)
    scaled = logits / temperature[:, None]
    filtered = jax.lax.cond(
        jnp.any((how.top_k > 0) | (how.top_p < 1.0)),
        lambda: jnp.where(scaled < _cut(scaled, how.top_k, how.top_p)[:, None], -jnp.inf, scaled),
        lambda: scaled,
    )
    least = scaled.max(axis=-1) + jnp.log(how.min_p)  # log(0) = -inf: off
    filtered = jnp.where(scaled < least[:, None], -jnp.inf, filtered)
    return jnp.argmax(
        filtered + jax.vmap(_gumbel, (0, 0, None))(how.seed, positions, logits.shape[-1]), axis=-1
    )


def _cut(scaled: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """The smallest logit that top-k and then top-p keep, per row: [B, V] -> [B].

    Ties with it are kept as well, so no order among equals is invented.
    """
    vocab = scaled.shape[-1]
    ordered = -jnp.sort(-scaled, axis=-1)  # descending
    kept = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab)
    weights = jax.nn.softmax(
        jnp.where(jnp.arange(vocab) < kept[:, None], ordered, -jnp.inf), axis=-1
    )
    # A token stays while the mass in front of it is below top_p; the first one always does.
    before = jnp.cumsum(weights, axis=-1) - weights
    nucleus = jnp.where(top_p < 1.0, jnp.sum(before < top_p[:, None], axis=-1), vocab)
    last = jnp.clip(jnp.minimum(kept, nucleus) - 1, 0, vocab - 1)
    return jnp.take_along_axis(ordered, last[:, None], axis=-1)[:, 0]


def _gumbel(seed: jax.Array, position: jax.Array, vocab: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
    return jax.random.gumbel(key, (vocab,), jnp.float32)
