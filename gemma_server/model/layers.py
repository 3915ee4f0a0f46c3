"""The small layers: norm, linear, feed-forward, embedding, rotary positions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gemma_server.model import kernels
from gemma_server.model.numerics import Numerics
from gemma_server.model.quantized import Quantized, blank, product

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
        y = x.astype(jnp.float32)
        if self.numerics.native:
            return kernels.norm(y, scale, self.eps)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)


class Linear(nn.Module):
    """x @ kernel.T without a bias; the kernel is [out, in], as GGUF and safetensors store it."""

    features: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = _matrix(nn.initializers.lecun_normal(in_axis=-1, out_axis=-2))
        kernel = self.param("kernel", init, (self.features, x.shape[-1]), self.numerics.dtype)
        return _linear(x, kernel, x.dtype, self.numerics.native)


class FeedForward(nn.Module):
    """GeGLU: down(gelu(gate(x)) * up(x)), gelu in its tanh form; gate and up share one product."""

    hidden: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        both = Linear(2 * self.hidden, self.numerics, name="gate_up")(x)  # [B, T, 2F]
        gate, up = jnp.split(both, 2, axis=-1)
        hidden = nn.gelu(gate, approximate=True) * up
        return Linear(x.shape[-1], self.numerics, name="down")(hidden)


class Embedder(nn.Module):
    """The table that turns ids into rows and, tied, hidden states into logits."""

    vocab: int
    width: int
    numerics: Numerics

    def setup(self) -> None:
        init = _matrix(nn.initializers.normal(1.0))
        self.embedding = self.param(
            "embedding", init, (self.vocab, self.width), self.numerics.dtype
        )

    def encode(self, tokens: jax.Array) -> jax.Array:
        """[B, T] ids -> [B, T, D]. The factor sqrt(D) is rounded to the dtype, as Gemma was."""
        table = self.embedding
        rows = table.rows(tokens) if isinstance(table, Quantized) else table[tokens]
        return rows * jnp.sqrt(jnp.float32(self.width)).astype(rows.dtype)

    def decode(self, hidden: jax.Array) -> jax.Array:
        """[B, D] -> [B, V] logits in f32."""
        return _linear(hidden, self.embedding, jnp.float32, self.numerics.native)


def _matrix(init: nn.initializers.Initializer) -> Callable[..., Matrix]:
    """The initialiser, for 8-bit weights too: these are made of others and begin as zeros."""

    def init_matrix(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike) -> Matrix:
        if dtype == jnp.int8:
            return blank(shape)
        floats: jax.Array = init(key, shape, dtype)
        return floats

    return init_matrix


def _linear(x: jax.Array, matrix: Matrix, dtype: DTypeLike, native: bool) -> jax.Array:
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
    index = jnp.arange(half, dtype=jnp.float32)
    timescale = base ** (index / half)
    if share < 1.0:
        timescale = jnp.where(index < share * half, timescale, jnp.inf)
    angle = positions[..., None, None].astype(jnp.float32) / timescale / factor  # [B, T, 1, H/2]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
