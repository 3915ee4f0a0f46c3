"""How near the real model's numbers are to the golden ones: KL divergence, position by position.

The goldens keep the 64 most likely ids of each scored position; all other ids are one bucket, so
that two distributions over 65 outcomes are compared. Sums are in float64.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GOLDENS = Path(__file__).parent / "goldens"

# The tiny models' logits spread over some 12 units; rounding in f32 moves them by 8e-5 at most, in
# the library as in our transformer. A wrong window, cap, base or norm moves them by far more.
FAMILY_TOLERANCE = 2e-4

CHUNK = 128  # tokens that a pass reads
LENGTH = 1280  # positions of the cache: five blocks, enough for the longest text
BLOCK = 256
ROWS = 32  # scored positions whose logits are held at a time
_LEAST = 1e-12  # a bucket's share below which rounding in f32 alone decides

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Golden:
    """One text: its ids, what is most likely after the scored positions, and what follows it."""

    name: str
    text: str
    tokens: list[int]
    positions: npt.NDArray[np.int64]  # [P]
    top_ids: npt.NDArray[np.int64]  # [P, 64], the most likely first
    top_logprobs: Floats  # [P, 64]
    greedy: list[int]  # nothing ends it
    greedy_gaps: list[float]  # by how much each greedy id's logit leads


def read_goldens() -> list[Golden]:
    """The real model's goldens, as scripts/goldens made them."""
    texts = json.loads((GOLDENS / "texts.json").read_text())
    with np.load(GOLDENS / "real_270m.npz") as file:
        arrays = {name: file[name] for name in file.files}
    tokens = _split(arrays["tokens"], arrays["token_offsets"])
    positions, top_ids, top_logprobs = (
        _split(arrays[name], arrays["position_offsets"])
        for name in ("positions", "top_ids", "top_logprobs")
    )
    return [
        Golden(
            text["name"],
            text["text"],
            tokens[i].tolist(),
            positions[i].astype(np.int64),
            top_ids[i].astype(np.int64),
            top_logprobs[i].astype(np.float64),
            arrays["greedy"][i].tolist(),
            arrays["greedy_gaps"][i].tolist(),
        )
        for i, text in enumerate(texts)
    ]


def _split(joined: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return np.split(joined, offsets[1:-1])


@dataclass(frozen=True)
class Quality:
    """What became of the scored positions, one entry each."""

    kl: Floats  # KL(golden || ours)
    top_difference: Floats  # |log-probability of the golden's most likely id, ours - golden|
    top_agrees: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence["Quality"]) -> "Quality":
        return cls(*(np.concatenate(arrays) for arrays in zip(*map(_fields, parts), strict=True)))


def _fields(quality: Quality) -> tuple[npt.NDArray[Any], ...]:
    return quality.kl, quality.top_difference, quality.top_agrees


def compare(golden: Golden, rows: Iterator[npt.NDArray[np.float32]]) -> Quality:
    """One text's quality, from logits [some, V] of its scored positions, in order."""
    parts, done = [], 0
    for logits in rows:
        at = slice(done, done := done + len(logits))
        found = np.take_along_axis(logits, golden.top_ids[at], axis=-1) - _log_total(logits)
        parts.append(quality(golden, at, found, logits.argmax(axis=-1)))
    assert done == len(golden.positions)
    return Quality.joined(parts)


def quality(golden: Golden, at: slice, found: Floats, best: npt.NDArray[np.int64]) -> Quality:
    """The quality at some of the scored positions, from the log-probabilities [P, 64] found for
    the golden's ids, and the ids [P] found the most likely."""
    expected = golden.top_logprobs[at]
    return Quality(
        kl_divergence(_with_the_rest(expected), _with_the_rest(found)),
        np.abs(found[:, 0] - expected[:, 0]),
        best == golden.top_ids[at, 0],
    )


def _with_the_rest(logprobs: Floats) -> Floats:
    """The kept ids' log-probabilities, and that of all others together."""
    rest = np.maximum(1 - np.exp(logprobs).sum(axis=-1, keepdims=True), _LEAST)
    return np.concatenate([logprobs, np.log(rest)], axis=-1)


def kl_divergence(expected: Floats, found: Floats) -> Floats:
    """KL(expected || found) over the last axis, of log-probabilities."""
    divergence: Floats = (np.exp(expected) * (expected - found)).sum(axis=-1)
    return divergence


def log_softmax(logits: npt.NDArray[np.floating[Any]]) -> Floats:
    """Log-probabilities over the last axis, in f64 throughout."""
    wide = logits.astype(np.float64)
    return wide - _log_total(wide)


def _log_total(logits: npt.NDArray[np.floating[Any]]) -> Floats:
    """What to subtract from logits [P, V] to get log-probabilities, [P, 1]; the sum is in f64."""
    most = logits.max(axis=-1, keepdims=True)
    total = np.exp(logits - most).sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.asarray(most + np.log(total), np.float64)


class Scorer:
    """The real model outside the engine: the logits of whichever positions are asked for."""

    def __init__(self, checkpoint: Path, dtype: str = "float32") -> None:
        import jax.numpy as jnp

        from gemma_server.model.numerics import Numerics
        from gemma_server.model.transformer import Transformer
        from gemma_server.native.library import register
        from gemma_server.private_directory import PrivateDirectory
        from gemma_server.serving.checkpoint import open_checkpoint
        from gemma_server.serving.on_device import put_on_device
        from gemma_server.settings import default_cache_dir

        opened = open_checkpoint(checkpoint)
        native = dtype == "int8" and register(PrivateDirectory(default_cache_dir() / "native"))
        self.config, self._dtype = opened.config, jnp.dtype(dtype)
        table = opened.weights.own_table
        numerics = Numerics(self._dtype, BLOCK, native, table.layout if table else None)
        self._module: Any = Transformer(self.config, numerics)
        self.params = put_on_device(opened, self._dtype, lambda done, total: None)

    @cached_property
    def _read(self) -> Any:
        import jax

        def read(params: Any, tokens: Any, positions: Any, cache: Any) -> Any:
            slot = np.zeros(1, np.int32)
            return self._module.apply({"params": params}, tokens, positions, cache, slot)

        return jax.jit(read, donate_argnums=3)

    @cached_property
    def _logits(self) -> Any:
        import jax

        return jax.jit(
            lambda params, hidden: self._module.apply({"params": params}, hidden, method="logits")
        )

    def logits(
        self, tokens: Sequence[int], positions: npt.NDArray[np.int64]
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Logits at the positions, in order, as arrays [at most ROWS, V]."""
        hidden = self._hidden(tokens)[positions]
        for start in range(0, len(hidden), ROWS):
            rows = hidden[start : start + ROWS]
            padded = np.concatenate(
                [rows, np.zeros((ROWS - len(rows), *rows.shape[1:]), rows.dtype)]
            )
            yield np.asarray(self._logits(self.params, padded))[: len(rows)]

    def _hidden(self, tokens: Sequence[int]) -> npt.NDArray[Any]:
        """The hidden states of all positions [T, D], read in chunks into an empty cache."""
        from gemma_server.model.cache import empty_cache

        cache = empty_cache(self.config, 1, LENGTH, self._dtype)
        parts = []
        for start in range(0, len(tokens), CHUNK):
            chunk = list(tokens[start : start + CHUNK])
            ids, positions = np.zeros((1, CHUNK), np.int32), np.full((1, CHUNK), LENGTH, np.int32)
            ids[0, : len(chunk)] = chunk
            positions[0, : len(chunk)] = np.arange(start, start + len(chunk))
            hidden, cache = self._read(self.params, ids, positions, cache)
            parts.append(np.asarray(hidden)[0, : len(chunk)])
        return np.concatenate(parts)
