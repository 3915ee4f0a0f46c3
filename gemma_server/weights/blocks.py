"""Matrices as 8-bit integers in blocks of 32 weights of a row, each with a scale.

That is GGUF's Q8_0. The native kernels and the model read them packed: see `pack`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gemma_server.model.config import BLOCK, GROUP
from gemma_server.weights.arrays import Array, aligned_empty, on_all_cores

LARGEST = 127
_CHUNK_BYTES = 1 << 20  # work on this much at a time: it stays in the CPU's caches


@dataclass(frozen=True)
class Blocks:
    """A weight is its value times its block's scale. Zeros may fill up a row's last block."""

    values: Array  # [out, whole blocks of in] i8
    scales: Array  # [out, blocks] f16

    @classmethod
    def empty(cls, out: int, width: int) -> "Blocks":
        blocks = -(-width // BLOCK)
        return cls(np.empty((out, blocks * BLOCK), np.int8), np.empty((out, blocks), np.float16))

    def __getitem__(self, rows: slice) -> "Blocks":
        return Blocks(self.values[rows], self.scales[rows])


class Packed(NamedTuple):
    """The order that the native kernels read. Within a block of a group, rows take turns in pairs
    along `in`; zeros fill up the last group.
    """

    values: Array  # [groups, blocks, BLOCK / 2, GROUP, 2] i8
    scales: Array  # [groups, blocks, GROUP] f16


def quantize(matrix: Array) -> Blocks:
    """The nearest blocks to a matrix [out, in] of any float dtype, on all cores."""
    out, width = matrix.shape
    blocks = Blocks.empty(out, width)
    step = max(1, _CHUNK_BYTES // (4 * width))
    chunks = [slice(row, row + step) for row in range(0, out, step)]
    on_all_cores(lambda rows: _quantize_into(matrix[rows], blocks[rows]), chunks)
    return blocks


def _quantize_into(matrix: Array, blocks: Blocks) -> None:
    rows, width = matrix.shape
    filled = np.zeros(blocks.values.shape, np.float32)
    filled[:, :width] = matrix
    floats = filled.reshape(rows, -1, BLOCK)
    # The scale is rounded first, so that the values fit the one that is stored.
    largest = np.minimum(np.abs(floats).max(axis=-1) / LARGEST, np.finfo(np.float16).max)
    scales = largest.astype(np.float16)
    floats /= np.where(scales > 0, scales, 1).astype(np.float32)[..., None]
    np.clip(np.rint(floats, out=floats), -LARGEST, LARGEST, out=floats)
    blocks.values[:] = floats.reshape(rows, -1)  # a block whose scale is 0 rounds to 0 as well
    blocks.scales[:] = scales


def pack(blocks: Blocks) -> Packed:
    """The same weights, packed on all cores."""
    out, count = blocks.scales.shape
    groups = -(-out // GROUP)
    values = aligned_empty((groups, count * BLOCK // 2, GROUP), np.uint16)  # pairs
    scales = aligned_empty((groups, count, GROUP), np.float16)
    values[-1], scales[-1] = 0, 0
    pairs = blocks.values.view(np.uint16)

    def pack_some(some: range) -> None:
        for group in some:
            rows = slice(group * GROUP, min((group + 1) * GROUP, out))
            values[group, :, : rows.stop - rows.start] = pairs[rows].T
            scales[group, :, : rows.stop - rows.start] = blocks.scales[rows].T

    step = max(1, _CHUNK_BYTES // (GROUP * count * BLOCK))
    starts = range(0, groups, step)
    on_all_cores(pack_some, [range(start, min(start + step, groups)) for start in starts])
    return Packed(values.view(np.int8).reshape(groups, count, BLOCK // 2, GROUP, 2), scales)
