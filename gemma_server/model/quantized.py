"""Quantized matrices on the device: 8-bit integers in blocks of a row, each with a scale.

A weight is its integer times the scale of its block, as in GGUF's Q8_0. gemma_server/weights
quantizes and packs them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma_server.model import kernels
from gemma_server.model.config import BLOCK, GROUP
from gemma_server.model.masks import Masks


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scales"],
    meta_fields=["shape"],
)
@dataclass(frozen=True)
class Quantized:
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
        """The dtype of the values, int8, by which settings name the whole format."""
        return np.dtype(np.int8)

    def rows(self, index: jax.Array) -> jax.Array:
        """Rows of the matrix: [...] indices -> [..., in] f32."""
        group, row = index // GROUP, index % GROUP
        values = self.values[group, :, :, row]  # [..., blocks, BLOCK / 2, 2]
        scales = self.scales[group, :, row].astype(jnp.float32)  # [..., blocks]
        values = values.reshape(*scales.shape, BLOCK) * scales[..., None]
        return values.reshape(*index.shape, -1)[..., : self.shape[1]]

    def part(self, index: jax.Array, rows: int) -> "Quantized":
        """`rows` rows, a multiple of GROUP, from index * rows on."""
        groups = rows // GROUP
        return Quantized(
            jax.lax.dynamic_slice_in_dim(self.values, index * groups, groups),
            jax.lax.dynamic_slice_in_dim(self.scales, index * groups, groups),
            (rows, self.shape[1]),
        )


def blank(shape: tuple[int, int]) -> Quantized:
    """A matrix of zeros."""
    groups, blocks = -(-shape[0] // GROUP), -(-shape[1] // BLOCK)
    return Quantized(
        jnp.zeros((groups, blocks, BLOCK // 2, GROUP, 2), jnp.int8),
        jnp.zeros((groups, blocks, GROUP), jnp.float16),
        shape,
    )


def product(x: jax.Array, matrix: Quantized, *, native: bool) -> jax.Array:
    """x @ matrix.T: [..., in] -> [..., out] in f32, by the native kernel or by XLA."""
    rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    if native:
        result = kernels.product(rows, matrix.values, matrix.scales, matrix.shape[0])
    else:
        result = _xla_product(rows, matrix)
    return result.reshape(*x.shape[:-1], matrix.shape[0])


def masked_product(x: jax.Array, matrix: Quantized, masks: Masks) -> jax.Array:
    """x @ matrix.T [B, out], with -inf where a row's mask has no bit; by the native kernel."""
    rows, masked = x.astype(jnp.float32), masks.active.astype(jnp.int32)
    return kernels.masked_product(
        rows, matrix.values, matrix.scales, matrix.shape[0], masks.words, masked
    )


def _xla_product(rows: jax.Array, matrix: Quantized) -> jax.Array:
    out, width = matrix.shape
    values = matrix.values.transpose(0, 3, 1, 2, 4).astype(jnp.float32)
    scales = matrix.scales.transpose(0, 2, 1).astype(jnp.float32)
    floats = values.reshape(*scales.shape, BLOCK) * scales[..., None]
    floats = floats.reshape(-1, scales.shape[-1] * BLOCK)[:out, :width]
    return jax.lax.dot_general(rows, floats, (((1,), (1,)), ((), ())))
