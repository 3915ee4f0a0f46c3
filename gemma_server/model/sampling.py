"""From logits to token ids, on the device, with each row's own settings."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gemma_server.model.adjustment import Adjustment

NOT_FINITE = -1  # instead of a token id, where a row's logits hold NaN or infinity


class Sampling(NamedTuple):
    """How each row samples; every field has one entry per row."""

    temperature: jax.Array  # [B] f32; 0 is greedy, and then nothing else matters
    top_k: jax.Array  # [B] i32; 0 is off
    top_p: jax.Array  # [B] f32; 1 is off
    min_p: jax.Array  # [B] f32; 0 is off
    seed: jax.Array  # [B, 2] u32: the high and the low word


# What is needed if the first is true; otherwise the last will do.
Choose = Callable[[jax.Array, Callable[[], jax.Array], Callable[[], jax.Array]], jax.Array]


def always(
    needed: jax.Array, compute: Callable[[], jax.Array], otherwise: Callable[[], jax.Array]
) -> jax.Array:
    """Compute it whether or not it is needed, where finding out costs more."""
    return compute()


def never(
    needed: jax.Array, compute: Callable[[], jax.Array], otherwise: Callable[[], jax.Array]
) -> jax.Array:
    """For programs that run only when it is known not to be needed."""
    return otherwise()


class Adjusted(NamedTuple):
    """The model's logits, and what the rows change in them before they draw."""

    logits: jax.Array  # [B, V] f32
    adjustment: Adjustment
    texts: Callable[[], jax.Array]  # [B, S] i32: each row's ids so far, gathered only if needed
    choose: Choose = jax.lax.cond

    def apply(self, positions: jax.Array) -> jax.Array:
        """The logits that the tokens at positions [B] are drawn from: [B, V]."""
        return self.choose(
            jnp.any(self.adjustment.active(positions)),
            lambda: self.adjustment.apply(self.logits, self.texts(), positions),
            lambda: self.logits,
        )


def sample(
    given: Adjusted, how: Sampling, positions: jax.Array, choose: Choose = jax.lax.cond
) -> jax.Array:
    """Draw one id per row for positions [B] -> [B] i32.

    Temperature, top-k, top-p and min-p apply in that order, after bias and penalties. The noise
    depends on (seed, position) alone, so neither the other rows nor the way the text was batched
    can change a row's draw. Greedy rows take the exact argmax. What no row needs is left out as
    `choose` decides: everything but the argmax when all rows are greedy and change nothing, and
    the search for the top when none has top-k or top-p.
    """
    logits, random = given.logits, how.temperature > 0.0
    greedy = jnp.argmax(logits, axis=-1)  # outside of the condition, where XLA:CPU divides it

    def draw() -> jax.Array:
        adjusted = given.apply(positions)
        best = jnp.argmax(adjusted, axis=-1)
        return choose(
            jnp.any(random),
            lambda: jnp.where(random, _draw(adjusted, how, positions, choose), best),
            lambda: best,
        )

    needed = jnp.any(random | given.adjustment.active(positions))
    drawn = choose(needed, draw, lambda: greedy)
    # The largest logit is NaN when any logit is, and infinite when any is +infinity.
    finite = jnp.isfinite(logits.max(axis=-1))
    return jnp.where(finite, drawn, NOT_FINITE).astype(jnp.int32)


def _draw(logits: jax.Array, how: Sampling, positions: jax.Array, choose: Choose) -> jax.Array:
    """The Gumbel-max draw from each row's filtered distribution: [B, V] -> [B]."""
    random = how.temperature > 0.0
    temperature = jnp.where(random, how.temperature, 1.0)
    # Relative to the largest, so that no temperature is too small to divide by.
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / temperature[:, None]
    filtered = choose(
        jnp.any(random & ((how.top_k > 0) | (how.top_p < 1.0))),
        lambda: _top(scaled, how.top_k, how.top_p),
        lambda: scaled,
    )
    # min_p is relative to the likeliest token, whose scaled logit is 0; log(0) = -inf is off.
    filtered = jnp.where(scaled < jnp.log(how.min_p)[:, None], -jnp.inf, filtered)
    noise = jax.vmap(_gumbel, (0, 0, None))(how.seed, positions, logits.shape[-1])
    return jnp.argmax(filtered + noise, axis=-1)


def _top(scaled: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """What top-k and then top-p keep, -inf elsewhere: [B, V] -> [B, V]. A filter that is off
    keeps all; tokens equal to the last one kept stay too, so no order among equals is invented.
    """
    keys = _ordered_keys(scaled)
    ones = jnp.ones_like(scaled)
    kept = _heaviest(keys, ones, jnp.where(top_k > 0, top_k, jnp.inf))
    weights = jnp.where(kept, jnp.exp(scaled), 0.0)
    mass = jnp.where(top_p < 1.0, top_p * weights.sum(axis=-1), jnp.inf)
    return jnp.where(kept & _heaviest(keys, weights, mass), scaled, -jnp.inf)


def _ordered_keys(x: jax.Array) -> jax.Array:
    """Unsigned integers that order as the floats do (IEEE 754: flip the negatives)."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _heaviest(keys: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
    """Mask of the fewest largest keys whose weights add up to `target`; all, if they never do.

    Finds the smallest key to keep bit by bit, 32 sums instead of a sort: 25 times as fast for
    [8, 262144] on XLA:CPU.
    """

    def try_bit(index: jax.Array, cut: jax.Array) -> jax.Array:
        higher = cut | (jnp.uint32(1 << 31) >> index.astype(jnp.uint32))
        held = jnp.sum(jnp.where(keys >= higher[:, None], weights, 0.0), axis=-1)
        return jnp.where(held >= target, higher, cut)

    cut: jax.Array = jax.lax.fori_loop(0, 32, try_bit, jnp.zeros(keys.shape[0], jnp.uint32))
    return jnp.greater_equal(keys, cut[:, None])


def _gumbel(seed: jax.Array, position: jax.Array, vocab: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
    return jax.random.gumbel(key, (vocab,), jnp.float32)
