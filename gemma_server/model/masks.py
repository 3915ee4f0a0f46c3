"""Which tokens a row may sample, a bit for each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

WORD = 32  # bits


def mask_words(vocab: int) -> int:
    """How many words have a bit for each token."""
    return -(-vocab // WORD)


class Masks(NamedTuple):
    """The masks of some rows."""

    active: jax.Array  # [B] bool: whether the row has one
    words: jax.Array  # [B, W] i32; id 0 in the lowest bit

    def apply(self, logits: jax.Array) -> jax.Array:
        """[B, V], -inf where a row's mask has no bit. Rows without one keep their bits."""
        bits = (self.words[:, :, None] >> jnp.arange(WORD)) & 1
        allowed = bits.reshape(len(logits), -1)[:, : logits.shape[-1]] == 1
        return jnp.where(allowed | ~self.active[:, None], logits, -jnp.inf)
