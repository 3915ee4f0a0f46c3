"""Gemma 4's mixture of experts: a router, and the few experts that it chooses for each token.

Source: huggingface/transformers, `models/gemma4/modeling_gemma4.py`.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import linen as nn

from gemma_server.model.config import Experts
from gemma_server.model.layers import Matrix, RMSNorm, Scale, geglu, linear, matrix_of
from gemma_server.model.numerics import Numerics
from gemma_server.model.quantized import Quantized

Route = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Mixture(nn.Module):
    """The chosen experts' outputs, added by their shares.

    Token by token: a token's bits do not depend on those beside it, and no more of the matrices is
    read than the chosen experts'.
    """

    experts: Experts
    eps: float
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array, routed: jax.Array) -> jax.Array:
        """x [B, T, D] is what the experts read, `routed` [B, T, D] what the router does."""
        width, hidden, native = x.shape[-1], self.experts.hidden, self.numerics.native
        routed, route = Router(self.experts, self.eps, self.numerics, name="router")(routed)
        count = self.experts.count
        gate_up = Stacked((count * 2 * hidden, width), self.numerics, name="gate_up")()
        down = Stacked((count * width, hidden), self.numerics, name="down")()

        def mixed(token: tuple[jax.Array, jax.Array]) -> jax.Array:
            """One token's [1, D] for the experts, and for the router -> [1, D] in f32."""
            read, looked_at = token

            def part_of(choice: tuple[jax.Array, jax.Array]) -> jax.Array:
                expert, share = choice
                both = linear(read, _part(gate_up, expert, 2 * hidden), x.dtype, native)
                answer = linear(geglu(both), _part(down, expert, width), x.dtype, native)
                return share * answer.astype(jnp.float32)

            parts: jax.Array = jax.lax.map(part_of, route(looked_at))  # [k, 1, D]
            return parts.sum(axis=0)

        tokens = x.reshape(-1, 1, width), routed.reshape(-1, 1, width)
        out: jax.Array = jax.lax.map(mixed, tokens).reshape(x.shape).astype(x.dtype)
        return out


class Router(nn.Module):
    """Which experts a token takes, in f32 throughout: a rounding would change the choice."""

    experts: Experts
    eps: float
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, Route]:
        """[B, T, D] -> what to route [B, T, D], and the function that routes one token of it,
        [1, D], to the experts' ids [k] and shares [k]."""
        exact = replace(self.numerics, dtype=jnp.float32)
        y = RMSNorm(self.eps, exact, name="norm")(x.astype(jnp.float32)) * x.shape[-1] ** -0.5
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, (self.experts.count, x.shape[-1]), jnp.float32)
        scales = Scale(self.experts.count, name="expert")()

        def route(token: jax.Array) -> tuple[jax.Array, jax.Array]:
            # On a GPU a product of f32 is otherwise one of fewer bits.
            scores = jnp.dot(kernel, token[0], precision=jax.lax.Precision.HIGHEST)
            shares, ids = jax.lax.top_k(jax.nn.softmax(scores), self.experts.chosen)
            return ids, shares / shares.sum() * scales[ids]

        return y, route


class Stacked(nn.Module):
    """The experts' matrices, below each other."""

    shape: tuple[int, int]
    numerics: Numerics

    @nn.compact
    def __call__(self) -> Matrix:
        init = matrix_of(nn.initializers.lecun_normal(in_axis=-1, out_axis=-2))
        kernel: Matrix = self.param("kernel", init, self.shape, self.numerics.dtype)
        return kernel


def _part(matrices: Matrix, index: jax.Array, rows: int) -> Matrix:
    """The matrix of this index, of so many rows."""
    if isinstance(matrices, Quantized):
        return matrices.part(index, rows)
    return jax.lax.dynamic_slice_in_dim(matrices, index * rows, rows)
