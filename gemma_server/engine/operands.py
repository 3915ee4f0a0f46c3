"""What a dispatch uploads: one array of words. On a GPU each small array more is a copy more."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from gemma_server.engine.plan import Chunk
from gemma_server.engine.request import SamplingOptions
from gemma_server.model.sampling import Sampling

# One row as the host writes it: where it is, and how it samples.
_ROW = np.dtype(
    [
        ("slot", np.int32),
        ("position", np.int32),
        ("temperature", np.float32),
        ("top_k", np.int32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("seed", np.uint32, 2),
    ]
)
WORDS = _ROW.itemsize // 4


class Rows(NamedTuple):
    """The same rows as the programs see them; every field has one entry per row."""

    slots: jax.Array  # [B] i32
    positions: jax.Array  # [B] i32
    how: Sampling


def pack(rows: Sequence[tuple[int, int, SamplingOptions]]) -> npt.NDArray[np.int32]:
    """Slot, position and sampling of each row: [B, WORDS]."""
    packed = np.array(
        [
            (slot, position, how.temperature, how.top_k, how.top_p, how.min_p, _words(how.seed))
            for slot, position, how in rows
        ],
        _ROW,
    )
    return packed.view(np.int32).reshape(-1, WORDS)


def unpack(packed: jax.Array) -> Rows:
    """What `pack` was given: [B, WORDS] i32, in a program."""

    def column(name: str) -> Any:
        dtype, offset = _ROW.fields[name][:2]  # type: ignore[index]
        first = offset // 4
        words = packed[:, first : first + dtype.itemsize // 4]
        columns = jax.lax.bitcast_convert_type(words, dtype.base)
        return columns if dtype.shape else columns[:, 0]

    fields = {name: column(name) for name in _ROW.fields or ()}
    slots, positions = fields.pop("slot"), fields.pop("position")
    return Rows(slots, positions, Sampling(**fields))


class ChunkOperand(NamedTuple):
    """A chunk as the programs see it."""

    row: Rows  # one: the slot, the first token's position, and how to draw behind the last
    filled: jax.Array  # [] i32: how many of the tokens are no padding
    draw: jax.Array  # [] bool
    tokens: jax.Array  # [T] i32


def pack_chunk(chunk: Chunk, size: int) -> npt.NDArray[np.int32]:
    """A chunk, filled up with padding to `size` tokens."""
    row = pack([(chunk.slot, chunk.offset, chunk.sampling or SamplingOptions())])[0]
    words = np.zeros(chunk_words(size), np.int32)
    words[:WORDS] = row
    words[WORDS], words[WORDS + 1] = len(chunk.token_ids), chunk.sampling is not None
    words[WORDS + 2 :][: len(chunk.token_ids)] = chunk.token_ids
    return words


def unpack_chunk(words: jax.Array) -> ChunkOperand:
    """What `pack_chunk` was given, in a program."""
    row = unpack(words[None, :WORDS])
    return ChunkOperand(row, words[WORDS], words[WORDS + 1] != 0, words[WORDS + 2 :])


def chunk_words(size: int) -> int:
    """The length of a packed chunk of `size` tokens."""
    return WORDS + 2 + size


def _words(seed: int) -> tuple[int, int]:
    return divmod(seed, 1 << 32)
