"""The Gemma transformer: embeddings, L blocks, final norm, tied output layer."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gemma_server.model.attention import MASKED, Attention
from gemma_server.model.cache import Cache, LayerCache, empty_cache
from gemma_server.model.config import Experts, GemmaConfig, LayerConfig
from gemma_server.model.layers import Dense, Embedder, FeedForward, Linear, RMSNorm, Scale, soft_cap
from gemma_server.model.masks import Masks
from gemma_server.model.mixture import Mixture
from gemma_server.model.numerics import Numerics
from gemma_server.model.stored_as import StoredAs

Params = dict[str, Any]  # a plain tree of dicts whose leaves are arrays


class Block(nn.Module):
    """One layer: attention and feed-forward, each added to the residual stream."""

    config: GemmaConfig
    layer: LayerConfig
    numerics: Numerics

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        cache: LayerCache,
        slots: jax.Array,
        own: jax.Array | None,
    ) -> tuple[jax.Array, LayerCache]:
        """x [B, T, D] and, in the small Gemma 4, this layer's own embedding of the tokens
        [B, T, P]."""
        cfg, numerics = self.config, self.numerics
        y = RMSNorm(cfg.norm_eps, numerics, name="pre_attention_norm")(x)
        attention = Attention(cfg, self.layer, numerics, name="attention")
        y, cache = attention(y, positions, cache, slots)
        if cfg.post_norms:
            y = RMSNorm(cfg.norm_eps, numerics, name="post_attention_norm")(y)
        x = x + y
        y = RMSNorm(cfg.norm_eps, numerics, name="pre_feed_forward_norm")(x)
        y = FeedForward(self.layer.hidden, numerics, name="feed_forward")(y)
        if cfg.experts is not None:
            y = self._with_experts(cfg.experts, x, y)
        if cfg.post_norms:
            y = RMSNorm(cfg.norm_eps, numerics, name="post_feed_forward_norm")(y)
        x = x + y
        if own is not None:
            x = x + PerLayerInput(cfg, numerics, name="per_layer")(x, own)
        if cfg.output_scale:
            x = x * Scale(1, name="output")().astype(x.dtype)
        return x, cache

    def _with_experts(self, experts: Experts, x: jax.Array, dense: jax.Array) -> jax.Array:
        """The dense layer's output, and that of the experts, which read its input x themselves."""
        eps, numerics = self.config.norm_eps, self.numerics
        dense = RMSNorm(eps, numerics, name="post_dense_norm")(dense)
        y = RMSNorm(eps, numerics, name="pre_experts_norm")(x)
        y = Mixture(experts, eps, numerics, name="experts")(y, x)
        return dense + RMSNorm(eps, numerics, name="post_experts_norm")(y)


class PerLayerInput(nn.Module):
    """What a layer makes of its own embedding of the tokens: [B, T, D] and [B, T, P] -> [B, T, D].

    Source: huggingface/transformers, `models/gemma4/modeling_gemma4.py`.
    """

    config: GemmaConfig
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array, own: jax.Array) -> jax.Array:
        gate = Linear(own.shape[-1], self.numerics, name="gate")(x)
        y = nn.gelu(gate, approximate=True) * own
        y = Linear(x.shape[-1], self.numerics, name="projection")(y)
        return RMSNorm(self.config.norm_eps, self.numerics, name="norm")(y)


class Stream(NamedTuple):
    """What the first layers made of some tokens, for the last ones."""

    x: jax.Array  # [B, T, D]
    own: jax.Array | None  # the embeddings of each layer's own [B, T, L, P]


class Transformer(nn.Module):
    """The whole model.

    The last layers of a small Gemma 4 have no keys and values of their own: only what is wanted of
    their output has to go through them.
    """

    config: GemmaConfig
    numerics: Numerics

    def setup(self) -> None:
        cfg, numerics = self.config, self.numerics
        self.embedder = Embedder(cfg, numerics)
        # Under jit each kind of block is traced and lowered once, not once per layer; XLA inlines
        # the calls. It cuts a warm start's work per program to less than half.
        jitted = nn.jit(Block)
        self.blocks = [
            jitted(cfg, layer, numerics, name=f"layer_{index}")
            for index, layer in enumerate(cfg.layers)
        ]
        self.final_norm = RMSNorm(cfg.norm_eps, numerics)
        self.dense = [Dense(width) for width in cfg.dense]

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, cache: Cache, slots: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """tokens [B, T] at positions [B, T] of slots [B] -> hidden [B, T, D], the new cache.

        A position at or beyond the cache's length marks padding: nothing is written for it, and
        what comes out for it means nothing.
        """
        stream, cache = self.begin(tokens, positions, cache, slots)
        return self.finish(stream, positions, cache, slots), cache

    def begin(
        self, tokens: jax.Array, positions: jax.Array, cache: Cache, slots: jax.Array
    ) -> tuple[Stream, Cache]:
        """The layers up to the last that has keys and values of its own, and the new cache."""
        x = self.embedder.encode(tokens)
        stream = Stream(x, self.embedder.per_layer(tokens, x))
        return self._through(range(self._first), stream, positions, cache, slots)

    def finish(
        self, stream: Stream, positions: jax.Array, cache: Cache, slots: jax.Array
    ) -> jax.Array:
        """The layers behind these, at all of the tokens or some of them -> hidden [B, T, D]."""
        rest = range(self._first, len(self.blocks))
        stream, _ = self._through(rest, stream, positions, cache, slots)
        return self.final_norm(stream.x)

    def embed(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """Whole texts, tokens [B, T] of which the first `lengths` [B] are theirs -> embeddings
        [B, D] of length 1, in f32: the mean over a text's tokens, through the dense layers.

        Source: UKPLab/sentence-transformers, its modules Pooling, Dense and Normalize.
        """
        rows, length = tokens.shape
        at = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        real = at < lengths[:, None]
        positions = jnp.where(real, at, length)
        scratch = empty_cache(self.config, rows, 1, self.numerics.dtype)  # layers replace theirs
        hidden, _ = self(tokens, positions, scratch, jnp.arange(rows))
        summed = jnp.where(real[..., None], hidden.astype(jnp.float32), 0).sum(axis=1)
        x = summed / lengths[:, None]
        for layer in self.dense:
            x = layer(x)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    @property
    def _first(self) -> int:
        """How many layers there are up to the last that has keys and values of its own."""
        return self.config.cached_layers[-1] + 1

    def _through(
        self,
        layers: range,
        stream: Stream,
        positions: jax.Array,
        cache: Cache,
        slots: jax.Array,
    ) -> tuple[Stream, Cache]:
        x, own = stream
        caches = dict(zip(self.config.cached_layers, cache, strict=True))
        for index in layers:
            source = self.config.layers[index].kv_layer
            owner = index if source is None else source
            of_layer = None if own is None else own[:, :, index]
            x, caches[owner] = self.blocks[index](x, positions, caches[owner], slots, of_layer)
        return Stream(x, own), tuple(caches.values())

    def logits(self, hidden: jax.Array, masks: Masks | None = None) -> jax.Array:
        """[B, D] -> [B, V] in f32. Masks are for native kernels, and spare them what no row wants:
        that is -inf."""
        logits = self.embedder.decode(hidden, masks)
        if self.config.final_softcap is not None:
            capped = soft_cap(logits, self.config.final_softcap)
            logits = capped if masks is None else jnp.where(logits == -jnp.inf, logits, capped)
        if self.config.suppressed:
            logits = logits.at[:, jnp.array(self.config.suppressed)].min(MASKED)
        return logits


def abstract_params(
    config: GemmaConfig, dtype: DTypeLike, own_table: StoredAs | None = None
) -> Params:
    """The parameter tree with the leaves' shapes and dtypes, from the modules' declaration."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    slot = jax.ShapeDtypeStruct((1,), jnp.int32)
    model = Transformer(config, Numerics(dtype, block=8, own_table=own_table))
    if config.bidirectional:
        init = partial(model.init, method="embed")
        tree = jax.eval_shape(init, jax.random.key(0), one, slot)
    else:
        cache = jax.eval_shape(lambda: empty_cache(config, 1, 8, dtype))
        tree = jax.eval_shape(model.init, jax.random.key(0), one, one, cache, slot)
    params: Params = tree["params"]
    return params
