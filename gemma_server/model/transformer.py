"""The Gemma transformer: embeddings, L blocks, final norm, tied output layer."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gemma_server.model.attention import Attention
from gemma_server.model.cache import Cache, LayerCache, empty_cache
from gemma_server.model.config import GemmaConfig, LayerKind
from gemma_server.model.layers import Embedder, FeedForward, RMSNorm, soft_cap

Params = dict[str, Any]  # a plain tree of dicts whose leaves are arrays


class Block(nn.Module):
    """One layer: attention and feed-forward, each added to the residual stream."""

    config: GemmaConfig
    kind: LayerKind
    dtype: DTypeLike
    block: int
    native: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, cache: LayerCache, slots: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        cfg = self.config
        y = RMSNorm(cfg.norm_eps, self.native, name="pre_attention_norm")(x)
        attention = Attention(cfg, self.kind, self.dtype, self.block, self.native, name="attention")
        y, cache = attention(y, positions, cache, slots)
        if cfg.post_norms:
            y = RMSNorm(cfg.norm_eps, self.native, name="post_attention_norm")(y)
        x = x + y
        y = RMSNorm(cfg.norm_eps, self.native, name="pre_feed_forward_norm")(x)
        y = FeedForward(cfg.hidden, self.dtype, self.native, name="feed_forward")(y)
        if cfg.post_norms:
            y = RMSNorm(cfg.norm_eps, self.native, name="post_feed_forward_norm")(y)
        return x + y, cache


class Transformer(nn.Module):
    """The whole model.

    `block` is how many cached positions attention reads at a time. `native` says that the kernels
    of gemma_server/native may be used; they must be registered, and serve 8-bit weights on a CPU.
    """

    config: GemmaConfig
    dtype: DTypeLike
    block: int = 256
    native: bool = False

    def setup(self) -> None:
        cfg = self.config
        self.embedder = Embedder(cfg.vocab, cfg.width, self.dtype, self.native)
        # Under jit each kind of block is traced and lowered once, not once per layer; XLA inlines
        # the calls. It cuts a warm start's work per program to less than half.
        jitted = nn.jit(Block)
        self.blocks = [
            jitted(cfg, cfg.layer_kind(i), self.dtype, self.block, self.native, name=f"layer_{i}")
            for i in range(cfg.layers)
        ]
        self.final_norm = RMSNorm(cfg.norm_eps, self.native)

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, cache: Cache, slots: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """tokens [B, T] at positions [B, T] of slots [B] -> hidden [B, T, D], the new cache.

        A position at or beyond the cache's length marks padding: nothing is written for it, and
        what comes out for it means nothing.
        """
        x = self.embedder.encode(tokens)
        layers = []
        for block, layer in zip(self.blocks, cache, strict=True):
            x, layer = block(x, positions, layer, slots)
            layers.append(layer)
        return self.final_norm(x), tuple(layers)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[B, D] -> [B, V] in f32."""
        return soft_cap(self.embedder.decode(hidden), self.config.final_softcap)


def abstract_params(config: GemmaConfig, dtype: DTypeLike) -> Params:
    """The parameter tree with shapes and dtypes for leaves: the one declaration of the weights."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    slot = jax.ShapeDtypeStruct((1,), jnp.int32)
    model = Transformer(config, dtype, block=8)
    cache = jax.eval_shape(lambda: empty_cache(config, 1, 8, dtype))
    tree = jax.eval_shape(model.init, jax.random.key(0), one, one, cache, slot)
    params: Params = tree["params"]
    return params
