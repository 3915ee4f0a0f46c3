"""How requests change the model's logits before sampling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Penalties(NamedTuple):
    """Each row's bias and penalties. There are E entries of bias; unused ones have value 0."""

    repetition: jax.Array  # [B] f32; 1 is off
    frequency: jax.Array  # [B] f32; 0 is off
    presence: jax.Array  # [B] f32; 0 is off
    window: jax.Array  # [B] i32; how many last tokens count, negative: see `_counts`
    answer: jax.Array  # [B] i32: the position of the answer's first token
    bias_ids: jax.Array  # [B, E] i32
    bias_values: jax.Array  # [B, E] f32
    bias_until: jax.Array  # [B, E] i32: the first position without it

    def active(self, positions: jax.Array) -> jax.Array:
        """Whether a row changes the logits for the token at positions [B]: [B] bool."""
        penalties = (self.repetition != 1.0) | (self.frequency != 0.0) | (self.presence != 0.0)
        return penalties | jnp.any(self._bias(positions) != 0.0, axis=-1)

    def apply(self, logits: jax.Array, texts: jax.Array, positions: jax.Array) -> jax.Array:
        """[B, V] for the tokens at positions [B] -> [B, V]; texts [B, S] are the ids before them.

        Rows that are not active keep their bits.
        """
        rows = jnp.arange(logits.shape[0])[:, None]
        changed = logits.at[rows, self.bias_ids].add(self._bias(positions))
        seen, counts = self._counts(logits, texts, positions)
        factor = self.repetition[:, None]
        repeated = jnp.where(changed > 0, changed / factor, changed * factor)
        changed = jnp.where(seen > 0, repeated, changed)
        changed -= self.frequency[:, None] * counts
        changed -= self.presence[:, None] * (counts > 0)
        return jnp.where(self.active(positions)[:, None], changed, logits)

    def _bias(self, positions: jax.Array) -> jax.Array:
        """[B, E] f32"""
        return jnp.where(positions[:, None] < self.bias_until, self.bias_values, 0.0)

    def _counts(
        self, logits: jax.Array, texts: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """How often each id occurs, for repetition and for the other two: twice [B, V] i32.

        With a window, both counts cover prompt and answer in it. Without one, repetition covers
        prompt and answer, the other two the answer alone.
        """
        rows, at = jnp.arange(logits.shape[0])[:, None], jnp.arange(texts.shape[1])
        windowed = self.window >= 0
        first = jnp.where(windowed, positions - self.window, 0)
        first_of_others = jnp.where(windowed, first, self.answer)
        before = at < positions[:, None]
        zeros = jnp.zeros(logits.shape, jnp.int32)
        seen = zeros.at[rows, texts].add(before & (at >= first[:, None]))
        return seen, zeros.at[rows, texts].add(before & (at >= first_of_others[:, None]))
