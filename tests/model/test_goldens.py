"""The tiny models' numbers against those of the Hugging Face library, made once and kept."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemma_server.weights.gguf.gemma import GgufWeights
from testing.oracle import gemma as oracle
from testing.quality import GOLDENS
from testing.tiny import load_params, tiny_config, tiny_weights, write_gguf

# Logits spread over some 12 units; rounding in f32 moves them by 8e-5 at most, in the library as in
# our transformer. Any wrong window, cap, base or norm moves them by far more than this.
TOLERANCE = 2e-4

presets = pytest.mark.parametrize("name", oracle.PRESETS)


def _golden(name: str) -> tuple[list[int], npt.NDArray[np.float32]]:
    with np.load(GOLDENS / "families.npz") as file:
        return file[f"{name}.ids"].tolist(), file[f"{name}.logits"]


@presets
def test_the_oracle_agrees_with_the_library(name: str) -> None:
    ids, logits = _golden(name)
    ours = oracle.logits(oracle.PRESETS[name], tiny_weights(name), ids)
    np.testing.assert_allclose(ours, logits, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [45, 7], ids=["in one pass", "in chunks"])
@presets
def test_the_transformer_agrees_with_the_library(name: str, chunk: int, tmp_path: Path) -> None:
    from testing.forward import Model

    source = GgufWeights(write_gguf(tmp_path / "model.gguf", name, tiny_weights(name)))
    params: dict[str, Any] = load_params(source, tiny_config(name))
    model = Model(name, params)
    ids, logits = _golden(name)
    for start in range(0, len(ids), chunk):
        piece = ids[start : start + chunk]
        [got] = model.feed([1], [piece], [start])
        expected = logits[start : start + len(piece)]
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
