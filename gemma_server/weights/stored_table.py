"""Tables that stay as they are stored, mapped from their file where it holds them in one piece."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gemma_server.model.stored_as import BLOCKS, StoredAs, row_bytes
from gemma_server.weights.arrays import Array, aligned_empty

_LINE = 64  # bytes: where an array must begin for jax to use it without a copy
_KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_MOST_UNITS = 1 << 31  # programs count them in 32 bits


class Units(NamedTuple):
    """The bytes of a table, in units of which each row is a whole number."""

    units: Array  # [U, bytes] u8, from a cache line on
    first: int  # the unit at which the first row begins


@dataclass(frozen=True)
class StoredTable:
    """A table as it is stored. `layout` is known without reading it."""

    layout: StoredAs
    open: Callable[[], Units]
    is_mapped: bool  # it is not read into memory


def mapped_table(
    file: Callable[[], Array], start: int, kind: str, shape: tuple[int, ...]
) -> StoredTable | None:
    """The rows that lie in a mapped file [bytes] u8 from byte `start` on; nothing is read.

    None if programs cannot widen this kind, or reach rows that begin at such a byte.
    """
    if kind not in BLOCKS:
        return None
    *rows, width = shape
    lead, nbytes = start % _LINE, row_bytes(kind, width)
    unit = math.gcd(lead, nbytes)
    layout = StoredAs(kind, (lead + math.prod(rows) * nbytes) // unit, unit)
    if layout.units >= _MOST_UNITS:
        return None

    def open_it() -> Units:
        raw = file()[start - lead : start - lead + layout.units * unit]
        return Units(raw.reshape(-1, unit), lead // unit)

    return StoredTable(layout, open_it, is_mapped=True)


def copied_table(
    copy: Callable[[Array], None], dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> StoredTable:
    """Rows of floats that are not in one piece: `copy` writes them into memory as they are."""
    kind = _KINDS[np.dtype(dtype).name]

    def read() -> Units:
        rows = aligned_empty(shape, dtype)
        copy(rows)
        return Units(rows.view(np.uint8), 0)

    return StoredTable(StoredAs(kind, shape[0], row_bytes(kind, shape[1])), read, is_mapped=False)
