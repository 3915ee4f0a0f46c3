"""A tiny model with a cache, called as the runner calls it, and texts for it."""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.model.cache import empty_cache
from gemma_server.model.config import GemmaConfig
from gemma_server.model.numerics import Numerics
from gemma_server.model.transformer import Transformer
from testing.models import config_of

BLOCK = 16  # cached positions per turn of the attention loop
LENGTH = 4 * BLOCK
SLOTS = 8
TEXT = 45  # crosses two block borders and every window
SIZES = (1, BLOCK, LENGTH)  # tokens of a row that there are programs for; the rest is padding


@cache
def _compiled(config: GemmaConfig, block: int, dtype: str, native: bool) -> Any:
    """The forward pass of a model, with any weights: compiled once for each shape of its operands.

    Returns all rows' logits [B, T, V] and the new cache.
    """
    import jax

    module: Any = Transformer(config, Numerics(np.dtype(dtype), block, native))

    def forward(params: Any, tokens: Any, positions: Any, cache: Any, slots: Any) -> Any:
        variables = {"params": params}
        hidden, cache = module.apply(variables, tokens, positions, cache, slots)
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = module.apply(variables, flat, method="logits")
        return logits.reshape(*hidden.shape[:-1], -1), cache

    return jax.jit(forward)


class Model:
    """A tiny model with a cache of several slots, called as the runner calls it."""

    def __init__(
        self,
        name: str,
        params: dict[str, Any],
        *,
        block: int = BLOCK,
        dtype: str = "float32",
        native: bool = False,
    ) -> None:
        config = config_of(name)
        self._forward = _compiled(config, block, dtype, native)
        self._params = params
        self.cache = empty_cache(config, SLOTS, LENGTH, np.dtype(dtype))

    def feed(
        self,
        slots: list[int],
        rows: list[list[int]],
        starts: list[int],
        *,
        least_rows: int = 2,
    ) -> list[npt.NDArray[np.float32]]:
        """Feed each slot its tokens from its start on; returns each row's logits [T, V].

        Rows are filled up with padding to one of the SIZES, and a row alone gets a row of padding.
        """
        count, longest = max(least_rows, len(rows)), max(map(len, rows))
        size = next(size for size in SIZES if size >= longest)
        tokens = np.zeros((count, size), np.int32)
        positions = np.full((count, size), LENGTH, np.int32)
        at = np.full(count, SLOTS, np.int32)
        at[: len(slots)] = slots
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            tokens[i, : len(row)] = row
            positions[i, : len(row)] = np.arange(start, start + len(row))
        logits, self.cache = self._forward(self._params, tokens, positions, self.cache, at)
        logits = np.asarray(logits)
        return [logits[i, : len(row)] for i, row in enumerate(rows)]


def text_of(name: str, seed: int, length: int = TEXT) -> list[int]:
    vocab = config_of(name).vocab
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab, length)]
