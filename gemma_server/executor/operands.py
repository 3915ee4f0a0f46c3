"""What a dispatch uploads: one array of words, since on a GPU each small array costs a copy.

A slot's sampling parameters come with its prompt's last chunk and stay on the device; decode
uploads slots, positions and steps only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from gemma_server.engine.plan import Chunk, Copy, Row
from gemma_server.engine.request import MAX_BANS, MAX_BIAS, SamplingParams
from gemma_server.model.penalties import Penalties
from gemma_server.model.sampling import Sampling

ROW_WORDS = 5  # slot, position, steps, whether it has a mask, what is fed
COPY_WORDS = 3  # source, target, length
SAMPLED = -1
_ALWAYS = np.iinfo(np.int32).max
_TABLE = MAX_BIAS + MAX_BANS
_CHUNK = 6  # words of a chunk before its parameters and tokens

# A slot's parameters as the host writes them.
_PARAMS = np.dtype(
    [
        ("temperature", np.float32),
        ("top_k", np.int32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("seed", np.uint32, 2),
        ("logprobs", np.int32),
        ("repetition", np.float32),
        ("frequency", np.float32),
        ("presence", np.float32),
        ("window", np.int32),
        ("answer", np.int32),
        ("bias_ids", np.int32, _TABLE),
        ("bias_values", np.float32, _TABLE),
        ("bias_until", np.int32, _TABLE),
    ]
)
PARAM_WORDS = _PARAMS.itemsize // 4


class SlotParams(NamedTuple):
    """The parameters of several rows, as the programs see them."""

    how: Sampling
    penalties: Penalties
    logprobs: jax.Array  # [B] bool: wanted


def pack_params(chunk: Chunk) -> npt.NDArray[np.int32]:
    """How the slot samples after the prompt's last chunk: [PARAM_WORDS]."""
    how, answer = chunk.sampling or SamplingParams(), chunk.offset + len(chunk.token_ids)
    packed = np.zeros((), _PARAMS)
    packed["temperature"], packed["min_p"] = how.temperature, how.min_p
    packed["top_k"], packed["top_p"] = how.top_k, how.top_p
    packed["seed"] = divmod(how.seed, 1 << 32)
    packed["logprobs"] = chunk.top_logprobs is not None
    packed["repetition"] = how.repetition_penalty
    packed["frequency"], packed["presence"] = how.frequency_penalty, how.presence_penalty
    packed["window"] = -1 if how.penalty_window is None else how.penalty_window
    packed["answer"] = answer
    table = [(token, value, _ALWAYS) for token, value in how.bias]
    table += [(token, -np.inf, answer + chunk.min_tokens) for token in chunk.banned]
    for index, entry in enumerate(table):
        packed["bias_ids"][index], packed["bias_values"][index], packed["bias_until"][index] = entry
    return packed.reshape(1).view(np.int32)


def unpack_params(packed: jax.Array) -> SlotParams:
    """What `pack_params` was given: [B, PARAM_WORDS] i32, in a program."""

    def column(name: str) -> Any:
        dtype, offset = _PARAMS.fields[name][:2]  # type: ignore[index]
        first = offset // 4
        words = packed[:, first : first + dtype.itemsize // 4]
        columns = jax.lax.bitcast_convert_type(words, dtype.base)
        return columns if dtype.shape else columns[:, 0]

    how = Sampling(*map(column, Sampling._fields))
    penalties = Penalties(*map(column, Penalties._fields))
    return SlotParams(how, penalties, column("logprobs") != 0)


def pack_rows(rows: Sequence[Row], count: int, beyond: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Slot, position, steps, masking and token of each fed token, then of padding up to `count`:
    [count, ROW_WORDS]. `SAMPLED` stands for the token that the slot has at that position."""
    filled = [
        (row.slot, row.position + index, row.steps, mask is not None, token)
        for row in rows
        for index, (token, mask) in enumerate(zip(_fed(row), row.masks, strict=True))
    ]
    return np.array(filled + [(*beyond, 0, 0, SAMPLED)] * (count - len(filled)), np.int32)


def _fed(row: Row) -> tuple[int, ...]:
    return (SAMPLED if row.token is None else row.token, *row.draft)


def pack_masks(masks: Sequence[bytes | None], count: int, words: int) -> npt.NDArray[np.int32]:
    """The masks that rows have, each in its row's place: [count, words]."""
    packed = np.zeros((count, words), np.int32)
    for line, mask in zip(packed, masks, strict=False):
        if mask is not None:
            line[:] = np.frombuffer(mask, np.int32, words)
    return packed


def pack_copy(copy: Copy) -> npt.NDArray[np.int32]:
    """A copy: [COPY_WORDS]."""
    return np.array([copy.source, copy.target, copy.length], np.int32)


class ChunkOperand(NamedTuple):
    """A chunk as the programs see it."""

    slot: jax.Array  # [] i32
    offset: jax.Array  # [] i32: the first token's position
    filled: jax.Array  # [] i32: how many of the tokens are not padding
    sample: jax.Array  # [] bool
    score: jax.Array  # [] bool
    masked: jax.Array  # [] bool: it has a mask
    params: jax.Array  # [PARAM_WORDS] i32
    tokens: jax.Array  # [T] i32
    scored: jax.Array  # [T] i32: the id that follows each token


def pack_chunk(chunk: Chunk, size: int) -> npt.NDArray[np.int32]:
    """A chunk, filled up with padding to `size` tokens."""
    ids = np.zeros((2, size), np.int32)
    ids[0, : len(chunk.token_ids)] = chunk.token_ids
    ids[1, : len(chunk.scored)] = chunk.scored
    sample, score, masked = chunk.sampling is not None, bool(chunk.scored), chunk.mask is not None
    head = [chunk.slot, chunk.offset, len(chunk.token_ids), sample, score, masked]
    return np.concatenate([np.array(head, np.int32), pack_params(chunk), ids.ravel()])


def unpack_chunk(words: jax.Array) -> ChunkOperand:
    """What `pack_chunk` was given, in a program."""
    slot, offset, filled, sample, score, masked = words[:_CHUNK]
    params, ids = words[_CHUNK:][:PARAM_WORDS], words[_CHUNK + PARAM_WORDS :]
    tokens, scored = ids.reshape(2, -1)
    flags = sample != 0, score != 0, masked != 0
    return ChunkOperand(slot, offset, filled, *flags, params, tokens, scored)


def chunk_words(size: int) -> int:
    """The length of a packed chunk of `size` tokens."""
    return _CHUNK + PARAM_WORDS + 2 * size
