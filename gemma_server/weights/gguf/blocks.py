"""GGUF's plain 4-, 5- and 8-bit blocks as 8-bit integers and scales: the same numbers.

The formats: ggml-org/llama.cpp, ggml/src/ggml-common.h (block_q4_0, block_q5_0, block_q8_0) and
ggml-quants.c (dequantize_row_*). Each block of 32 weights begins with its scale, in f16.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

EXACT_IN_BLOCKS = ("Q4_0", "Q5_0", "Q8_0")

_Bytes = npt.NDArray[np.uint8]


def unpack_blocks(raw: _Bytes, kind: str) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    """Stored blocks [..., bytes] -> values [..., 32] and scales [...] f16."""
    scales = np.ascontiguousarray(raw[..., :2]).view("<f2")[..., 0]
    body = raw[..., 2:]
    if kind == "Q8_0":
        return body.view(np.int8), scales
    nibbles = body if kind == "Q4_0" else body[..., 4:]
    # Weight i is in the low half of byte i, weight 16 + i in the high half.
    values = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)
    if kind == "Q4_0":
        return values.view(np.int8) - np.int8(8), scales
    fifth_bits = np.unpackbits(body[..., :4], axis=-1, bitorder="little")
    return (values | fifth_bits << 4).view(np.int8) - np.int8(16), scales
