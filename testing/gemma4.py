"""Tiny random Gemma 4s: the oracle's weights, written as the checkpoints that people have."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.model.config import GemmaConfig
from gemma_server.weights.hugging_face.gemma import HuggingFaceWeights
from testing.hugging_face import write_directory
from testing.oracle.gemma4 import PRESETS, random_weights
from testing.tiny import load_params

CONTEXT_LENGTH = 512
Weights = dict[str, npt.NDArray[Any]]


@cache
def gemma4_weights(name: str) -> Weights:
    """Random weights of a preset, under transformers' names."""
    return random_weights(PRESETS[name], np.random.default_rng([*PRESETS].index(name)))


def gemma4_config(name: str) -> dict[str, Any]:
    """The config.json of a text model, as transformers writes it."""
    c = PRESETS[name]
    return {
        "architectures": ["Gemma4ForCausalLM"],
        "attention_bias": False,
        "attention_k_eq_v": c.keys_are_values,
        "enable_moe_block": bool(c.experts),
        "eos_token_id": [1, 106],
        "final_logit_softcapping": c.softcap,
        "global_head_dim": c.global_head_dim,
        "head_dim": c.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": c.width,
        "hidden_size_per_layer_input": c.per_layer,
        "intermediate_size": c.hidden,
        "layer_types": ["sliding_attention" if local else "full_attention" for local in c.local],
        "max_position_embeddings": CONTEXT_LENGTH,
        "model_type": "gemma4_text",
        "moe_intermediate_size": c.expert_hidden or None,
        "num_attention_heads": c.heads,
        "num_experts": c.experts or None,
        "num_global_key_value_heads": c.global_kv_heads if c.keys_are_values else None,
        "num_hidden_layers": c.layers,
        "num_key_value_heads": c.kv_heads,
        "num_kv_shared_layers": c.sharing,
        "rms_norm_eps": c.eps,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 1_000_000.0,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
        },
        "sliding_window": c.window,
        "tie_word_embeddings": True,
        "top_k_experts": c.chosen or None,
        "use_double_wide_mlp": bool(c.sharing_hidden),
        "vocab_size": c.vocab,
        "vocab_size_per_layer_input": c.vocab,
    }


def write_gemma4_hf(
    path: Path, name: str, *, shards: int = 1, dtype: npt.DTypeLike = np.float32
) -> Path:
    """Write a preset as the directory `path`."""
    tensors = {f"model.{key}": array for key, array in gemma4_weights(name).items()}
    return write_directory(path, gemma4_config(name), tensors, shards, dtype)


@cache
def gemma4_model(name: str) -> tuple[GemmaConfig, dict[str, Any]]:
    """A preset's architecture and parameter tree in f32, through files on disk."""
    with TemporaryDirectory() as folder:
        source = HuggingFaceWeights(write_gemma4_hf(Path(folder) / "hf", name))
        return source.config, load_params(source, source.config)
