"""Attention of new tokens over a slot's cached keys and values."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gemma_server.model import kernels
from gemma_server.model.cache import LayerCache
from gemma_server.model.config import GemmaConfig, LayerConfig
from gemma_server.model.layers import Linear, RMSNorm, normed, rotate, soft_cap
from gemma_server.model.numerics import Numerics

_QUERIES = 256  # of a long text that is embedded, at a time: their logits take memory
MASKED = -2.3819763e38  # Gemma's own mask value: finite, so that no row turns into NaN


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; in Gemma 3 with norms on q and k, in Gemma 4
    on v too."""

    config: GemmaConfig
    layer: LayerConfig
    numerics: Numerics

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, cache: LayerCache, slots: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        """x [B, T, D] at `positions` [B, T] of `slots` [B] -> [B, T, D] and the updated cache.

        A layer that uses another layer's keys and values gets that layer's cache, and does not
        change it.
        """
        cfg, layer, numerics = self.config, self.layer, self.numerics
        rows, new, width = x.shape
        owns = layer.kv_layer is None
        stored = 0 if not owns else 1 if layer.keys_are_values else 2
        heads = layer.heads + stored * layer.kv_heads
        qkv = Linear(heads * layer.head_dim, numerics, name="qkv")(x)
        qkv = qkv.reshape(rows, new, heads, layer.head_dim)
        q, kv = jnp.split(qkv, [layer.heads], axis=2)
        if cfg.qk_norm:
            q = RMSNorm(cfg.norm_eps, numerics, name="query_norm")(q)
        q = self._rotate(q, positions) * cfg.query_scale
        if owns:
            k, v = (kv, kv) if layer.keys_are_values else jnp.split(kv, 2, axis=2)
            if cfg.value_norm:
                one = jnp.ones(layer.head_dim, jnp.float32)
                v = normed(v, one, cfg.norm_eps, native=numerics.native)
            if cfg.qk_norm:
                k = RMSNorm(cfg.norm_eps, numerics, name="key_norm")(k)
            k = self._rotate(k, positions)
            if cfg.bidirectional:  # a pass has whole texts: there is nothing else to see
                k, v = (each.swapaxes(1, 2).astype(x.dtype) for each in (k, v))
                cache = LayerCache(k, v)
            else:
                cache = cache.write(k, v, slots, positions)

        if cfg.bidirectional:
            out = attend_both_ways(
                q.astype(x.dtype),
                cache,
                positions < new,
                window=layer.window,
                softcap=cfg.attention_softcap,
            )
        elif numerics.native:
            out = kernels.attention(
                q, cache.k, cache.v, slots, positions, layer.window, cfg.attention_softcap
            )
        else:
            out = attend(
                q.astype(x.dtype),
                cache,
                slots,
                positions,
                window=layer.window,
                softcap=cfg.attention_softcap,
                block=numerics.block,
            )
        out = out.reshape(rows, new, layer.heads * layer.head_dim).astype(x.dtype)
        return Linear(width, numerics, name="output")(out), cache

    def _rotate(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        layer = self.layer
        return rotate(x, positions, layer.rope_base, layer.rope_factor, layer.rope_share)


def attend(
    q: jax.Array,
    cache: LayerCache,
    slots: jax.Array,
    positions: jax.Array,
    *,
    window: int | None,
    softcap: float | None,
    block: int,
) -> jax.Array:
    """Softmax attention of q [B, T, N, H] over its slots' caches -> [B, T, N, H] in f32.

    Works through the cache in blocks of `block` positions with a running softmax, and only the
    blocks that some row can see: short texts do not pay for a long context. A block in which a
    row sees nothing leaves that row's numbers exactly as they were, so a row's bits do not depend
    on how long its neighbours are. When one block is the whole cache there is no loop; then each
    row reads what its window can see. Rows at or beyond the cache's end are padding.
    """
    rows, new, heads, head_dim = q.shape
    _, kv_heads, length, _ = cache.k.shape
    group = heads // kv_heads
    # [B, K, T*G, H]: the queries that share a key-value head form one matrix.
    q = q.reshape(rows, new, kv_heads, group, head_dim).transpose(0, 2, 1, 3, 4)
    q = q.reshape(rows, kv_heads, new * group, head_dim)
    q_at = jnp.repeat(positions, group, axis=1)[:, None, :, None]  # [B, 1, T*G, 1]
    real = jnp.where(q_at < length, q_at, -1)
    newest = real.max(axis=2, keepdims=True)  # [B, 1, 1, 1], padding apart

    def add(
        start: jax.Array, size: int, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        top, total, out = carry
        k, v = cache.block(slots, start, size)  # [B, K, size, H]
        k_at = start[..., None, None, None] + jnp.arange(size)  # broadcasts to [B, 1, 1, size]
        # After the newest token are values of the slot's last request. Their weight is 0, but if
        # one is not finite, the product is not either.
        v = jnp.where(jnp.swapaxes(k_at, -1, -2) <= newest, v, 0)
        logits = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
        seen = k_at <= q_at
        if window is not None:
            seen &= k_at > q_at - window
        logits = jnp.where(seen, soft_cap(logits, softcap), MASKED)
        new_top = jnp.maximum(top, logits.max(axis=-1, keepdims=True))
        keep = jnp.exp(top - new_top)
        weights = jnp.exp(logits - new_top)
        mixed = jnp.einsum(
            "bkqs,bksh->bkqh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return new_top, total * keep + weights.sum(axis=-1, keepdims=True), out * keep + mixed

    column = (*q.shape[:-1], 1)
    carry = (
        jnp.full(column, MASKED, jnp.float32),
        jnp.zeros(column, jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    if block == length:
        size = length if window is None else min(length, window + new - 1)
        start = jnp.clip(positions[:, 0] + new - size, 0, length - size)
        _, total, out = add(start, size, carry)
    else:
        first, last = _visible_blocks(positions, length, window, block)
        _, total, out = jax.lax.fori_loop(
            first, last, lambda index, carry: add(index * block, block, carry), carry
        )
    out = (out / total).reshape(rows, kv_heads, new, group, head_dim)
    return out.transpose(0, 2, 1, 3, 4).reshape(rows, new, heads, head_dim)


def attend_both_ways(
    q: jax.Array,
    texts: LayerCache,
    real: jax.Array,
    *,
    window: int | None,
    softcap: float | None,
) -> jax.Array:
    """Softmax attention of all tokens of some texts over each other, padding apart: q [B, T, N, H]
    over `texts` [B, K, T, H], where `real` [B, T] -> [B, T, N, H] in f32.

    A window reaches to both sides: a token sees those less than `window` away. Of long texts
    `_QUERIES` tokens look at a time, and local layers read only what these can see.
    """
    rows, length, heads, head_dim = q.shape
    _, kv_heads, _, _ = texts.k.shape
    q = q.reshape(rows, length, kv_heads, heads // kv_heads, head_dim)
    count = min(length, _QUERIES)
    reach = length if window is None else window - 1  # to each side
    size = min(length, count + 2 * reach)

    def of_some(first: jax.Array) -> jax.Array:
        """The tokens first .. first + count: [B, count, K, G, H]."""
        start = jnp.clip(first - reach, 0, length - size)
        queries = jax.lax.dynamic_slice_in_dim(q, first, count, axis=1)
        k, v = (jax.lax.dynamic_slice_in_dim(each, start, size, axis=2) for each in texts)
        logits = jnp.einsum("bqkgh,bksh->bkgqs", queries, k, preferred_element_type=jnp.float32)
        apart = (start + jnp.arange(size)) - (first + jnp.arange(count))[:, None]
        seen = jax.lax.dynamic_slice_in_dim(real, start, size, axis=1)[:, None]  # [B, 1, size]
        seen &= jnp.abs(apart) <= reach
        logits = jnp.where(seen[:, None, None], soft_cap(logits, softcap), MASKED)
        weights = jax.nn.softmax(logits).astype(v.dtype)
        return jnp.einsum("bkgqs,bksh->bqkgh", weights, v, preferred_element_type=jnp.float32)

    if count == length:
        out = of_some(jnp.int32(0))
    else:
        parts = jax.lax.map(of_some, jnp.arange(0, length, count))
        out = jnp.moveaxis(parts, 0, 1)
    return out.reshape(rows, length, heads, head_dim)


def _visible_blocks(
    positions: jax.Array, length: int, window: int | None, block: int
) -> tuple[jax.Array, jax.Array]:
    """The first block that some row sees, and the one after the last."""
    real = positions < length
    last = jnp.max(jnp.where(real, positions, 0)) // block + 1
    if window is None:
        return jnp.int32(0), last
    oldest = jnp.min(jnp.where(real, positions, length)) - (window - 1)
    return jnp.clip(oldest // block, 0, last - 1), last
