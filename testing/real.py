"""The real Gemma 3 270M for tests: one load shared by all of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_server.engine.engine import Engine
from gemma_server.engine.request import Finished, Handle, Request, SamplingParams, Token
from gemma_server.serving.loader import load_model
from gemma_server.serving.model import GenerativeModel
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import Settings, default_cache_dir, load_settings
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.weights.gguf.container import GgufFile
from testing.oracle.gemma import OracleConfig
from testing.tiny import GGUF_NORMS, read_tensor

Pieces = tuple[list[str], list[float], list[int]]  # of a tokenizer: text, score, type

REAL = OracleConfig(
    layers=18,
    width=640,
    heads=4,
    kv_heads=1,
    head_dim=256,
    hidden=2048,
    vocab=262_144,
    query_scale=256**-0.5,
    windows=tuple(None if i % 6 == 5 else 512 for i in range(18)),
    rope_bases=tuple(1e6 if i % 6 == 5 else 1e4 for i in range(18)),
    rope_factors=(1.0,) * 18,
    attention_softcap=None,
    final_softcap=None,
    qk_norm=True,
    post_norms=True,
)


@dataclass
class RealModel:
    """The loaded model and shortcuts to it."""

    settings: Settings
    loaded: GenerativeModel

    @property
    def tokenizer(self) -> Tokenizer:
        return self.loaded.tokenizer

    @property
    def engine(self) -> Engine:
        return self.loaded.engine

    def submit(self, text: str, steps: int, sampling: SamplingParams | None = None) -> Handle:
        ids = tuple(self.tokenizer.encode(text))
        options = sampling or SamplingParams()
        [handle] = self.engine.submit([Request(ids, steps, options, self.tokenizer.stop_ids)])
        return handle

    def read(self, handle: Handle) -> list[int]:
        return read_ids(handle)

    def generate(self, text: str, steps: int, sampling: SamplingParams | None = None) -> str:
        return self.tokenizer.decode(self.read(self.submit(text, steps, sampling)))


def read_ids(handle: Handle) -> list[int]:
    """The ids of a whole answer."""
    ids: list[int] = []
    while isinstance(event := handle.next_event(120), Token):
        ids.append(event.id)
    assert isinstance(event, Finished), event
    return ids


def load_real_model(cache_dir: Path | None = None, **options: Any) -> RealModel:
    """Load the demo model, with the default settings apart from these."""

    def fail(error: BaseException) -> None:
        raise error

    settings = load_settings(cache_dir=cache_dir or default_cache_dir(), **options)
    loaded = load_model(settings, ServableVersion("real"), fail)
    assert isinstance(loaded, GenerativeModel)
    return RealModel(settings, loaded)


def flat_weights(path: Path) -> dict[str, dict[str, Any]]:
    """The demo file's tensors in the flat layout that the oracle takes."""
    file, c = GgufFile(path), REAL

    def heads(name: str, count: int) -> Any:
        return read_tensor(file, name).reshape(count, c.head_dim, c.width).transpose(0, 2, 1)

    flat: dict[str, dict[str, Any]] = {
        "transformer/embedder": {"input_embedding": read_tensor(file, "token_embd.weight")},
        "transformer/final_norm": {"scale": read_tensor(file, "output_norm.weight") - 1},
    }
    for i in range(c.layers):
        blk, layer = f"blk.{i}", f"transformer/layer_{i}"
        out = read_tensor(file, f"{blk}.attn_output.weight")
        flat[f"{layer}/attn/q_einsum"] = {"w": heads(f"{blk}.attn_q.weight", c.heads)}
        kv = [heads(f"{blk}.attn_{name}.weight", c.kv_heads) for name in "kv"]
        flat[f"{layer}/attn/kv_einsum"] = {"w": np.stack(kv)}
        flat[f"{layer}/attn/attn_vec_einsum"] = {"w": out.T.reshape(c.heads, c.head_dim, c.width)}
        gating = [read_tensor(file, f"{blk}.ffn_{name}.weight") for name in ("gate", "up")]
        flat[f"{layer}/mlp/gating_einsum"] = {"w": np.stack(gating)}
        flat[f"{layer}/mlp/linear"] = {"w": read_tensor(file, f"{blk}.ffn_down.weight").T}
        for ours, theirs in GGUF_NORMS.items():
            flat[f"{layer}/{ours}"] = {"scale": read_tensor(file, f"{blk}.{theirs}.weight") - 1}
    return flat
