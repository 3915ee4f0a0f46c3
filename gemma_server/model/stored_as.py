"""How a file stores a table whose rows are widened as they are read; without jax, so that weight
readers may use it."""

from dataclasses import dataclass

# Weights and bytes of a block, by ggml's name. Sources: ggml-org/llama.cpp,
# ggml/src/ggml-common.h.
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q5_0": (32, 22),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}


@dataclass(frozen=True)
class StoredAs:
    """`units` units of `unit` bytes each, of which every row of the table is a whole number."""

    kind: str  # of BLOCKS
    units: int
    unit: int

    @property
    def nbytes(self) -> int:
        """Bytes of the table, and of what lies in front of it up to a cache line."""
        return self.units * self.unit


def row_bytes(kind: str, width: int) -> int:
    """Bytes of a row of `width` weights, which are whole blocks."""
    weights, size = BLOCKS[kind]
    return width // weights * size
