"""A tiny model with a cache, called as the runner calls it, and texts for it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.model.cache import empty_cache
from gemma_server.model.numerics import Numerics
from gemma_server.model.transformer import Transformer
from testing.oracle import gemma as oracle
from testing.tiny import tiny_config

BLOCK = 16  # cached positions per turn of the attention loop
LENGTH = 4 * BLOCK
TEXT = 45  # crosses two block borders and every window


class Model:
    """A tiny model with a cache of several slots, called as the runner calls it."""

    def __init__(
        self,
        name: str,
        params: dict[str, Any],
        *,
        slots: int = 3,
        block: int = BLOCK,
        dtype: str = "float32",
        native: bool = False,
    ) -> None:
        import jax

        config = tiny_config(name)
        self._module: Any = Transformer(config, Numerics(np.dtype(dtype), block, native))
        self._variables = {"params": params}
        self._cache = empty_cache(config, slots, LENGTH, np.dtype(dtype))

        def forward(tokens: Any, positions: Any, cache: Any, slots: Any) -> Any:
            hidden, cache = self._module.apply(self._variables, tokens, positions, cache, slots)
            flat = hidden.reshape(-1, hidden.shape[-1])
            logits = self._module.apply(self._variables, flat, method="logits")
            return logits.reshape(*hidden.shape[:-1], -1), cache

        self._forward = jax.jit(forward)

    def feed(
        self, slots: list[int], rows: list[list[int]], starts: list[int], pad_to: int = 0
    ) -> list[npt.NDArray[np.float32]]:
        """Feed each slot its tokens from its start on; returns each row's logits [T, V]."""
        longest = max(pad_to, *(len(row) for row in rows))
        tokens = np.zeros((len(rows), longest), np.int32)
        positions = np.full((len(rows), longest), LENGTH, np.int32)
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            tokens[i, : len(row)] = row
            positions[i, : len(row)] = np.arange(start, start + len(row))
        logits, self._cache = self._forward(
            tokens, positions, self._cache, np.array(slots, np.int32)
        )
        return [np.asarray(logits[i, : len(row)]) for i, row in enumerate(rows)]


def text_of(name: str, seed: int, length: int = TEXT) -> list[int]:
    vocab = oracle.PRESETS[name].vocab
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab, length)]
