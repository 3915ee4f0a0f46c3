"""The small layers: norm, linear, feed-forward, embedding, rotary positions."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gemma_server.model import kernels
from gemma_server.model.config import GemmaConfig
from gemma_server.model.masks import Masks
from gemma_server.model.numerics import Numerics
from gemma_server.model.quantized import Quantized, blank, masked_product, product
from gemma_server.model.stored_as import StoredAs
from gemma_server.model.stored_rows import StoredRows, blank_rows

Matrix = jax.Array | Quantized  # [out, in]


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in f32 whatever x's dtype.

    Gemma 1 to 3 store the scale less 1; the readers of weights/ add it.
    """

    eps: float
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        return normed(x, scale, self.eps, native=self.numerics.native)


def normed(x: jax.Array, scale: jax.Array, eps: float, *, native: bool) -> jax.Array:
    """x / rms(x) * scale over the last axis, in x's dtype; the native kernel gives f32."""
    y = x.astype(jnp.float32)
    if native:
        return kernels.norm(y, scale, eps)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


class Scale(nn.Module):
    """Numbers that multiply, in f32: [size]."""

    size: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("scale", nn.initializers.ones_init(), (self.size,), jnp.float32)


class Linear(nn.Module):
    """x @ kernel.T without a bias; the kernel is [out, in], as GGUF and safetensors store it."""

    features: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = matrix_of(nn.initializers.lecun_normal(in_axis=-1, out_axis=-2))
        kernel = self.param("kernel", init, (self.features, x.shape[-1]), self.numerics.dtype)
        return linear(x, kernel, x.dtype, self.numerics.native)


class Dense(nn.Module):
    """A layer behind the mean of a text's tokens: [B, in] -> [B, features], in f32 throughout."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, (self.features, x.shape[-1]), jnp.float32)
        # On a GPU a product of f32 is otherwise one of fewer bits.
        return jnp.dot(x, kernel.T, precision=jax.lax.Precision.HIGHEST)


class FeedForward(nn.Module):
    """GeGLU: down(gelu(gate(x)) * up(x)), gelu in its tanh form; gate and up share one product."""

    hidden: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        both = Linear(2 * self.hidden, self.numerics, name="gate_up")(x)  # [B, T, 2F]
        return Linear(x.shape[-1], self.numerics, name="down")(geglu(both))


def geglu(both: jax.Array) -> jax.Array:
    """[..., 2F] -> [..., F]: the first half through gelu, times the second."""
    gate, up = jnp.split(both, 2, axis=-1)
    return nn.gelu(gate, approximate=True) * up


class Embedder(nn.Module):
    """The table that turns ids into rows and, tied, hidden states into logits; in the small Gemma 4
    also the one that has a row for each layer."""

    config: GemmaConfig
    numerics: Numerics

    def setup(self) -> None:
        cfg, numerics = self.config, self.numerics
        init = matrix_of(nn.initializers.normal(1.0))
        self.embedding = self.param("embedding", init, (cfg.vocab, cfg.width), numerics.dtype)
        if cfg.per_layer_width is not None:
            of_all = len(cfg.layers) * cfg.per_layer_width
            shape = (cfg.vocab, of_all)
            if cfg.per_layer_table:
                layout = numerics.own_table
                self.per_layer_embedding = self.param(
                    "per_layer_embedding",
                    init if layout is None else _stored_as(layout),
                    shape,
                    numerics.dtype,
                )
            self.per_layer_projection = Linear(of_all, numerics)
            self.per_layer_norm = RMSNorm(cfg.norm_eps, numerics)

    def encode(self, tokens: jax.Array) -> jax.Array:
        """[B, T] ids -> [B, T, D]. The factor sqrt(D) is rounded to the dtype, as Gemma was."""
        return _scaled(_rows(self.embedding, tokens), self.config.width)

    def per_layer(self, tokens: jax.Array, x: jax.Array) -> jax.Array | None:
        """[B, T] ids and their rows [B, T, D] -> what each layer reads beside its input,
        [B, T, L, P]: the token's own row, if there is a table, and a projection of x, each of
        norm 1."""
        width = self.config.per_layer_width
        if width is None:
            return None
        shape = (*tokens.shape, len(self.config.layers), width)
        projected = self.per_layer_projection(x) * self.config.width**-0.5
        context = self.per_layer_norm(projected.reshape(shape))
        if not self.config.per_layer_table:
            return context
        own = _rows(self.per_layer_embedding, tokens).astype(x.dtype).reshape(shape)
        return (context + _scaled(own, width)) * 2**-0.5

    def decode(self, hidden: jax.Array, masks: Masks | None = None) -> jax.Array:
        """[B, D] -> [B, V] logits in f32, -inf where a row's mask has no bit."""
        if masks is not None and isinstance(self.embedding, Quantized):
            return masked_product(hidden, self.embedding, masks)
        return linear(hidden, self.embedding, jnp.float32, self.numerics.native)


def _rows(table: Matrix | StoredRows, tokens: jax.Array) -> jax.Array:
    return table.rows(tokens) if isinstance(table, Quantized | StoredRows) else table[tokens]


def _scaled(rows: jax.Array, width: int) -> jax.Array:
    return rows * jnp.sqrt(jnp.float32(width)).astype(rows.dtype)


def _stored_as(layout: StoredAs) -> Callable[..., StoredRows]:
    def init(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike) -> StoredRows:
        return blank_rows(layout, shape[1])

    return init


def matrix_of(init: nn.initializers.Initializer) -> Callable[..., Matrix]:
    """The initialiser, for 8-bit weights too: these are made of others and begin as zeros."""

    def init_matrix(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike) -> Matrix:
        if dtype == jnp.int8:
            return blank(shape)
        floats: jax.Array = init(key, shape, dtype)
        return floats

    return init_matrix


def linear(x: jax.Array, matrix: Matrix, dtype: DTypeLike, native: bool) -> jax.Array:
    """x @ matrix.T over the last axis; float matrices give `dtype`, 8-bit ones f32."""
    if isinstance(matrix, Quantized):
        return product(x, matrix, native=native)
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    out: jax.Array = jax.lax.dot_general(x, matrix, axes, preferred_element_type=dtype)
    return out


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """tanh(x / cap) * cap; None leaves x alone."""
    return x if cap is None else jnp.tanh(x / cap) * cap


def rotate(
    x: jax.Array, positions: jax.Array, base: float, factor: float, share: float
) -> jax.Array:
    """Rotary positions: the first half of each head turns with the second half.

    x: [B, T, N, H]; positions: [B, T]; `factor` divides the angle (linear scaling). Of the pairs
    only the first `share` turn, at the speed that they have among all.
    """
    half = x.shape[-1] // 2
    turning = math.floor(share * half + 1e-6)  # a share from a file is rounded
    timescale = base ** (jnp.arange(turning, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) / timescale / factor  # [B, T, 1, H/2]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, still_a, b, still_b = jnp.split(
        x.astype(jnp.float32), [turning, half, half + turning], axis=-1
    )
    parts = [a * cos - b * sin, still_a, b * cos + a * sin, still_b]
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)
