"""From logits to token ids, on the device, with each row's own settings."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gemma_server.model.masks import Masks
from gemma_server.model.penalties import Penalties

NOT_FINITE = -1  # instead of a token id, where a row's logits hold NaN or infinity
_CANDIDATES = 512  # of a row, searched first for its top
_BLOCK = 512  # tokens


class Sampling(NamedTuple):
    """How each row samples; every field has one entry per row."""

    temperature: jax.Array  # [B] f32; 0 is greedy, and then nothing else matters
    top_k: jax.Array  # [B] i32; 0 is off
    top_p: jax.Array  # [B] f32; 1 is off
    min_p: jax.Array  # [B] f32; 0 is off
    seed: jax.Array  # [B, 2] u32: the high and the low word


# Computes the second argument if the first is true, else the third.
Choose = Callable[[jax.Array, Callable[[], jax.Array], Callable[[], jax.Array]], jax.Array]


def always(
    needed: jax.Array, compute: Callable[[], jax.Array], otherwise: Callable[[], jax.Array]
) -> jax.Array:
    """Compute the second argument in any case, where a condition costs more."""
    return compute()


def never(
    needed: jax.Array, compute: Callable[[], jax.Array], otherwise: Callable[[], jax.Array]
) -> jax.Array:
    """Compute the third argument, in programs that run only if no row needs the second."""
    return otherwise()


class Adjusted(NamedTuple):
    """The model's logits, and what the rows change in them before sampling."""

    logits: jax.Array  # [B, V] f32
    penalties: Penalties
    masks: Masks
    texts: Callable[[], jax.Array]  # [B, S] i32: each row's ids so far, gathered only if needed
    choose: Choose = jax.lax.cond

    def active(self, positions: jax.Array) -> jax.Array:
        """Whether a row changes the logits for the token at positions [B]: [B] bool."""
        return self.penalties.active(positions) | self.masks.active

    def apply(self, positions: jax.Array) -> jax.Array:
        """The logits that the tokens at positions [B] are sampled from: [B, V]."""

        def penalized() -> jax.Array:
            return self.choose(
                jnp.any(self.penalties.active(positions)),
                lambda: self.penalties.apply(self.logits, self.texts(), positions),
                lambda: self.logits,
            )

        return self.choose(
            jnp.any(self.active(positions)),
            lambda: self.masks.apply(penalized()),
            lambda: self.logits,
        )


def sample(
    given: Adjusted, how: Sampling, positions: jax.Array, choose: Choose = jax.lax.cond
) -> jax.Array:
    """Sample one id per row for positions [B] -> [B] i32.

    Temperature, top-k, top-p and min-p apply in that order, after bias, penalties and masks. The
    noise depends on (seed, position) alone, so neither the other rows nor the batching of the text
    can change a row's token. Greedy rows take the exact argmax of the adjusted logits. `choose` and
    `given.choose` skip work that no row needs: everything but the argmax when all rows are greedy
    and change nothing, and the search for the top when none has top-k or top-p.
    """
    random, changed = how.temperature > 0.0, given.active(positions)
    # Outside of the condition, where XLA:CPU runs it on several threads. A condition's result is
    # copied: the adjusted logits never leave theirs (benchmarks/LOG.md).
    plain = jnp.argmax(given.logits, axis=-1)

    def likeliest() -> jax.Array:
        return given.choose(
            jnp.any(given.penalties.active(positions)),
            lambda: _argmin(-given.apply(positions)),
            lambda: _argmin(-given.masks.apply(given.logits)),  # without a copy
        )

    def drawn() -> jax.Array:
        adjusted = given.apply(positions)
        others = jnp.any(changed & ~random)
        best = given.choose(others, lambda: _argmin(-adjusted), lambda: plain)
        return jnp.where(random, _sample_filtered(adjusted, how, positions, choose), best)

    def adjusted_or_random() -> jax.Array:
        return choose(
            jnp.any(random),
            drawn,
            lambda: given.choose(jnp.any(changed), likeliest, lambda: plain),
        )

    either = choose if given.choose is never else given.choose
    sampled = either(jnp.any(random | changed), adjusted_or_random, lambda: plain)
    # The largest logit is NaN when any logit is, and infinite when any is +infinity.
    finite = jnp.isfinite(given.logits.max(axis=-1))
    return jnp.where(finite, sampled, NOT_FINITE).astype(jnp.int32)


def _sample_filtered(
    logits: jax.Array, how: Sampling, positions: jax.Array, choose: Choose
) -> jax.Array:
    """A sample of each row's filtered distribution: [B, V] -> [B]."""
    random = how.temperature > 0.0
    temperature = jnp.where(random, how.temperature, 1.0)
    # Relative to the largest logit, so that no temperature is too small to divide by.
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / temperature[:, None]
    least = choose(
        jnp.any(random & ((how.top_k > 0) | (how.top_p < 1.0))),
        lambda: _least_kept(scaled, how.top_k, how.top_p, choose),
        lambda: jnp.full(len(scaled), -jnp.inf),
    )
    # min_p is relative to the likeliest token, whose scaled logit is 0; log(0) = -inf is off.
    least = jnp.maximum(least, jnp.log(how.min_p))
    # Gumbel-max, written with exponential noise: the argmin of noise / probability has the wanted
    # distribution. Summing probabilities instead would depend on the last bit of each of them.
    raced = _noise(how.seed, positions, scaled.shape[-1]) * jnp.exp(-scaled)
    return _argmin(jnp.where(scaled >= least[:, None], raced, jnp.inf))


def _noise(seeds: jax.Array, positions: jax.Array, count: int) -> jax.Array:
    """Exponential noise of mean 1, by seed, position and token: [B, 2], [B] -> [B, count].

    Threefry makes a key of seed and position; a cheaper hash, applied twice, makes 32 bits of it
    for each token. With Threefry for all tokens a sample takes three times as long on a CPU.
    """

    def key(seed: jax.Array, position: jax.Array) -> jax.Array:
        wrapped = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.key_data(jax.random.fold_in(wrapped, position))

    keys = jax.vmap(key)(seeds, positions)
    bits = _mix(_mix(jnp.arange(count, dtype=jnp.uint32) ^ keys[:, :1]) + keys[:, 1:])
    # -log1p(-share): floats near 0 are fine enough for the least of many values.
    share = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2**-32)
    return -jnp.log1p(-jnp.minimum(share, jnp.float32(1 - 2**-24)))


def _mix(x: jax.Array) -> jax.Array:
    """A hash of x [u32]: a bit flips half of the result's (lowbias32, skeeto/hash-prospector)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _argmin(values: jax.Array) -> jax.Array:
    """Each row's argmin: [B, V] -> [B]. By blocks, since XLA:CPU fuses an argmin with its inputs
    into a slow loop, but not a minimum."""
    blocks = values.reshape(len(values), -1, math.gcd(values.shape[-1], _BLOCK))
    block = jnp.argmin(blocks.min(axis=-1), axis=-1)
    within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * blocks.shape[-1] + jnp.argmin(within, axis=-1)


def _least_kept(scaled: jax.Array, top_k: jax.Array, top_p: jax.Array, choose: Choose) -> jax.Array:
    """The smallest logit that top-k and then top-p keep, -inf for all: [B, V] -> [B]. All tokens
    equal to it are kept, so ties need no order.

    On a CPU the search for it takes ten times as long as finding a row's first few hundred tokens,
    which mostly include it.
    """
    likeliest, _ = jax.lax.top_k(scaled, min(_CANDIDATES, scaled.shape[-1]))
    count = likeliest.shape[-1]
    kth = _at(likeliest, jnp.clip(top_k - 1, 0, count - 1))
    least = jnp.where(top_k > 0, kth, -jnp.inf)
    kept = jnp.where(scaled >= least[:, None], jnp.exp(scaled), 0.0)
    short = jnp.cumsum(jnp.exp(likeliest), axis=-1) < (top_p * kept.sum(axis=-1))[:, None]
    pth = _at(likeliest, jnp.minimum(short.sum(axis=-1), count - 1))
    least = jnp.maximum(least, jnp.where(top_p < 1.0, pth, -jnp.inf))
    beyond = (top_k > count) | ((top_p < 1.0) & short[:, -1])
    return choose(jnp.any(beyond), lambda: _search_least_kept(scaled, top_k, top_p), lambda: least)


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
    """Each row's value at its own index: [B, N], [B] -> [B]."""
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]


def _search_least_kept(scaled: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """`_least_kept`, however many are kept."""
    keys = _ordered_keys(scaled)
    kth = _search(keys, jnp.ones_like(scaled), jnp.where(top_k > 0, top_k, jnp.inf))
    weights = jnp.where(keys >= kth[:, None], jnp.exp(scaled), 0.0)
    mass = jnp.where(top_p < 1.0, top_p * weights.sum(axis=-1), jnp.inf)
    return _logit(jnp.maximum(kth, _search(keys, weights, mass)))


def _ordered_keys(x: jax.Array) -> jax.Array:
    """Unsigned integers that order as the floats do (IEEE 754: flip the negatives)."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _logit(keys: jax.Array) -> jax.Array:
    """The floats that have these keys; the key 0, below all others, gives -inf."""
    positive = keys >> 31 == 1
    bits = jnp.where(positive, keys & jnp.uint32((1 << 31) - 1), ~keys)
    logit = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(keys == 0, -jnp.inf, logit)


def _search(keys: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
    """The largest key such that the weights of keys >= it add up to `target`; 0 if none is.

    Finds it bit by bit, 32 sums instead of a sort: 25 times as fast for [8, 262144] on XLA:CPU.
    """

    def try_bit(index: jax.Array, cut: jax.Array) -> jax.Array:
        higher = cut | (jnp.uint32(1 << 31) >> index.astype(jnp.uint32))
        held = jnp.sum(jnp.where(keys >= higher[:, None], weights, 0.0), axis=-1)
        return jnp.where(held >= target, higher, cut)

    cut: jax.Array = jax.lax.fori_loop(0, 32, try_bit, jnp.zeros(keys.shape[0], jnp.uint32))
    return cut
