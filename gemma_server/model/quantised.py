"""Matrices of 8-bit integers in blocks, each block with a scale.

A block is 32 weights of one output row; a weight is its integer times the block's scale. That is
GGUF's Q8_0, whose blocks are taken over as they are.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma_server.model import kernels

BLOCK = 32  # weights of one output row that share a scale
GROUP = 16  # output rows that lie side by side, as gemma_server/native/product.cc reads them
LARGEST = 127


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scales"],
    meta_fields=["shape"],
)
@dataclass(frozen=True)
class Quantised:
    """An [out, in] matrix, packed for the native kernel.

    Both sizes are filled up with zeros to whole groups and blocks. Within a block of a group the
    rows take turns in pairs along `in`: the values are [groups, blocks, BLOCK / 2, GROUP, 2] i8,
    the scales [groups, blocks, GROUP] f16.
    """

    values: jax.Array
    scales: jax.Array
    shape: tuple[int, int]

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the values, which is how settings name the whole format."""
        return np.dtype(np.int8)

    def rows(self, index: jax.Array) -> jax.Array:
        """Rows of the matrix: [...] indices -> [..., in] f32."""
        group, row = index // GROUP, index % GROUP
        values = self.values[group, :, :, row]  # [..., blocks, BLOCK / 2, 2]
        scales = self.scales[group, :, row].astype(jnp.float32)  # [..., blocks]
        values = values.reshape(*scales.shape, BLOCK) * scales[..., None]
        return values.reshape(*index.shape, -1)[..., : self.shape[1]]


@jax.jit
def quantise(matrix: jax.Array) -> Quantised:
    """The nearest quantised matrix: [out, in] of any float dtype; 0 where a block is all zeros."""
    out, width = matrix.shape
    matrix = jnp.pad(matrix.astype(jnp.float32), ((0, 0), (0, -width % BLOCK)))
    matrix = matrix.reshape(out, -1, BLOCK)
    # Rounded first, so that the values fit the scale that is kept.
    scales = (jnp.abs(matrix).max(axis=-1) / LARGEST).astype(jnp.float16)
    divisors = jnp.where(scales > 0, scales, 1).astype(jnp.float32)
    values = jnp.clip(jnp.round(matrix / divisors[..., None]), -LARGEST, LARGEST)
    return _pack(values.astype(jnp.int8).reshape(out, -1), scales, width)


@jax.jit
def pack(values: jax.Array, scales: jax.Array) -> Quantised:
    """Blocks as files have them: values [out, in] i8, scales [out, in / BLOCK] f16."""
    return _pack(values, scales, values.shape[1])


def _pack(values: jax.Array, scales: jax.Array, width: int) -> Quantised:
    out, blocks = scales.shape
    values = jnp.pad(values, ((0, -out % GROUP), (0, 0)))
    scales = jnp.pad(scales, ((0, -out % GROUP), (0, 0)))
    return Quantised(
        values.reshape(-1, GROUP, blocks, BLOCK // 2, 2).transpose(0, 2, 3, 1, 4),
        scales.reshape(-1, GROUP, blocks).transpose(0, 2, 1),
        (out, width),
    )


def product(x: jax.Array, matrix: Quantised, *, native: bool) -> jax.Array:
    """x @ matrix.T: [..., in] -> [..., out] in f32, by the native kernel or by XLA's own means."""
    rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    if native:
        result = kernels.product(rows, matrix.values, matrix.scales, matrix.shape[0])
    else:
        result = _xla_product(rows, matrix)
    return result.reshape(*x.shape[:-1], matrix.shape[0])


def _xla_product(rows: jax.Array, matrix: Quantised) -> jax.Array:
    out, width = matrix.shape
    values = matrix.values.transpose(0, 3, 1, 2, 4).astype(jnp.float32)
    scales = matrix.scales.transpose(0, 2, 1).astype(jnp.float32)
    floats = values.reshape(*scales.shape, BLOCK) * scales[..., None]
    floats = floats.reshape(-1, scales.shape[-1] * BLOCK)[:out, :width]
    return jax.lax.dot_general(rows, floats, (((1,), (1,)), ((), ())))
