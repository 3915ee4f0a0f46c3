"""ggml's tensor types, each written as the definition of its value number i.

A tensor is a row of blocks of equal size. `BLOCKS` says of each type how large a block is and what
number its i-th value is. Plain and slow: one value at a time, from the block's bytes.

The formulas are evaluated in float64, where they are exact: an f16 scale has 11 significant bits,
what multiplies it has 12 at most, and all exponents are small. A value is then rounded to f32
once. Arithmetic in f32 throughout rounds only in its last addition, so it gives the same bits.

The letters are those of ggml-common.h: d and dmin (or m) are f16 scales, q the quantized value,
ql or qs its low bits and qh or hmask its high ones.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """One of ggml's types."""

    values: int
    size: int  # bytes
    halves: tuple[int, ...]  # where its f16 numbers are
    value: Callable[[bytes, int], float]


def decode(kind: str, raw: bytes) -> list[float]:
    """All values of a tensor, each exactly an f32."""
    block = BLOCKS[kind]
    assert len(raw) % block.size == 0
    return [
        _to_f32(block.value(raw[start : start + block.size], i))
        for start in range(0, len(raw), block.size)
        for i in range(block.values)
    ]


def _to_f32(number: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded


# The unquantised types.


def _f32(block: bytes, i: int) -> float:
    number: float = struct.unpack("<f", block)[0]
    return number


def _f16(block: bytes, i: int) -> float:
    return _half(block, 0)


def _bf16(block: bytes, i: int) -> float:
    return _f32(b"\0\0" + block, 0)  # the upper half of an f32


# Blocks of 32: one scale, or a scale and a minimum.


def _q8_0(block: bytes, i: int) -> float:
    return _half(block, 0) * _signed(block[2 + i])


def _q4_0(block: bytes, i: int) -> float:
    return _half(block, 0) * (_nibble_of_32(block[2:], i) - 8)


def _q4_1(block: bytes, i: int) -> float:
    return _half(block, 0) * _nibble_of_32(block[4:], i) + _half(block, 2)


def _q5_0(block: bytes, i: int) -> float:
    q = _nibble_of_32(block[6:], i) + 16 * _bit_of_32(block[2:6], i)
    return _half(block, 0) * (q - 16)


def _q5_1(block: bytes, i: int) -> float:
    q = _nibble_of_32(block[8:], i) + 16 * _bit_of_32(block[4:8], i)
    return _half(block, 0) * q + _half(block, 2)


def _nibble_of_32(qs: bytes, i: int) -> int:
    """Values 0 to 15 are the low nibbles of 16 bytes, 16 to 31 their high ones."""
    return qs[i % 16] >> 4 * (i // 16) & 15


def _bit_of_32(qh: bytes, i: int) -> int:
    number: int = struct.unpack("<I", qh)[0]
    return number >> i & 1


# Blocks of 256: f16 scales for the whole, small integer scales for 16 or 32 values each.


def _q2_k(block: bytes, i: int) -> float:
    scales, qs, d, dmin = block[:16], block[16:80], _half(block, 80), _half(block, 82)
    scale = scales[i // 16]
    return d * (scale & 15) * _two_bits(qs, i) - dmin * (scale >> 4)


def _q3_k(block: bytes, i: int) -> float:
    hmask, qs, scales, d = block[:32], block[32:96], block[96:108], _half(block, 108)
    k = i // 16
    low = scales[k % 8] >> 4 * (k // 8) & 15
    high = scales[8 + k % 4] >> 2 * (k // 4) & 3
    q = _two_bits(qs, i) + 4 * (hmask[i % 32] >> i // 32 & 1)
    return d * (low + 16 * high - 32) * (q - 4)


def _q4_k(block: bytes, i: int) -> float:
    d, dmin, scales, qs = _half(block, 0), _half(block, 2), block[4:16], block[16:]
    scale, minimum = _scale_and_minimum(scales, i // 32)
    return d * scale * _nibble_of_64(qs, i) - dmin * minimum


def _q5_k(block: bytes, i: int) -> float:
    d, dmin, scales = _half(block, 0), _half(block, 2), block[4:16]
    qh, qs = block[16:48], block[48:]
    scale, minimum = _scale_and_minimum(scales, i // 32)
    q = _nibble_of_64(qs, i) + 16 * (qh[i % 32] >> i // 32 & 1)
    return d * scale * q - dmin * minimum


def _q6_k(block: bytes, i: int) -> float:
    ql, qh, scales, d = block[:128], block[128:192], block[192:208], _half(block, 208)
    half, at = divmod(i, 128)
    low = ql[64 * half + at % 64] >> 4 * (at // 64) & 15
    return d * _signed(scales[i // 16]) * (low + 16 * _two_bits(qh, i) - 32)


def _two_bits(packed: bytes, i: int) -> int:
    """Each half of the values has 32 bytes, each quarter of a half two bits of every byte."""
    half, at = divmod(i, 128)
    return packed[32 * half + at % 32] >> 2 * (at // 32) & 3


def _nibble_of_64(qs: bytes, i: int) -> int:
    """Every 64 values are 32 bytes: first their low nibbles, then their high ones."""
    return qs[32 * (i // 64) + i % 32] >> 4 * (i // 32 % 2) & 15


def _scale_and_minimum(packed: bytes, k: int) -> tuple[int, int]:
    """Of eight: the first four are six bits in a byte, the others fill the bytes' gaps."""
    if k < 4:
        return packed[k] & 63, packed[k + 4] & 63
    low = packed[k + 4]
    return (low & 15) + 16 * (packed[k - 4] >> 6), (low >> 4) + 16 * (packed[k] >> 6)


def _half(block: bytes, at: int) -> float:
    number: float = struct.unpack_from("<e", block, at)[0]
    return number


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


BLOCKS = {
    "F32": Block(1, 4, (), _f32),
    "F16": Block(1, 2, (0,), _f16),
    "BF16": Block(1, 2, (), _bf16),
    "Q8_0": Block(32, 34, (0,), _q8_0),
    "Q4_0": Block(32, 18, (0,), _q4_0),
    "Q4_1": Block(32, 20, (0, 2), _q4_1),
    "Q5_0": Block(32, 22, (0,), _q5_0),
    "Q5_1": Block(32, 24, (0, 2), _q5_1),
    "Q2_K": Block(256, 84, (80, 82), _q2_k),
    "Q3_K": Block(256, 110, (108,), _q3_k),
    "Q4_K": Block(256, 144, (0, 2), _q4_k),
    "Q5_K": Block(256, 176, (0, 2), _q5_k),
    "Q6_K": Block(256, 210, (208,), _q6_k),
}
