"""Every tiny model by its name: those of testing/tiny.py and of testing/gemma4.py."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.model.config import GemmaConfig
from testing.counts import families, is_long
from testing.gemma4 import gemma4_model, gemma4_weights
from testing.oracle import gemma, gemma4
from testing.quality import GOLDENS
from testing.tiny import tiny_config, tiny_params, tiny_weights

NAMES = (*gemma.PRESETS, "gemma4-e", "gemma4-kv", "gemma4-moe")


def one_of_each(experts: str = "gemma4-moe") -> list[str]:
    """The names for what depends on the architecture alone: one of each family, or all. Models of
    this name have experts, and global layers whose keys are their values."""
    return [*families(), "gemma4-e", experts, *(["gemma4-kv"] if is_long() else [])]


def config_of(name: str) -> GemmaConfig:
    """The architecture."""
    return gemma4_model(name)[0] if name in gemma4.PRESETS else tiny_config(name)


def params_of(name: str) -> dict[str, Any]:
    """The parameter tree in f32."""
    return gemma4_model(name)[1] if name in gemma4.PRESETS else tiny_params(name)


def oracle_logits(name: str, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """The logits [T, V] from the equations."""
    if name in gemma4.PRESETS:
        return gemma4.logits(gemma4.PRESETS[name], gemma4_weights(name), ids)
    return gemma.logits(gemma.PRESETS[name], tiny_weights(name), ids)


@cache
def read_golden(name: str) -> tuple[list[int], npt.NDArray[np.float32]]:
    """A text, and the logits [T, V] that the Hugging Face library has for it."""
    with np.load(GOLDENS / ("gemma4.npz" if name in gemma4.PRESETS else "families.npz")) as file:
        return file[f"{name}.ids"].tolist(), file[f"{name}.logits"]
