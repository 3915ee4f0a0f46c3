"""Tiny Gemmas as Hugging Face directories: config.json and safetensors, as the hub has them.

Names and layouts: huggingface/transformers, `models/gemma*/modeling_gemma*.py`; matrices are
[out, in], and norms store w of 1 + w as Flax does. scripts/goldens loads what is written
here into the real library. No tokenizer is written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from testing.oracle.gemma import PRESETS, OracleConfig
from testing.tiny import Weights, out_in_matrices

Tensors = dict[str, npt.NDArray[Any]]

EXTRA_ROWS = 64  # that the multimodal models' embedding has beyond the tokenizer's vocabulary
CONTEXT_LENGTH = 512
GLOBAL_EVERY = 6  # Gemma 3's `sliding_window_pattern`

_MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
# Kaggle's names of a layer's norms -> Hugging Face's; Gemma 1 has one name for another place.
_NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn/_query_norm": "self_attn.q_norm",
    "attn/_key_norm": "self_attn.k_norm",
}
_GEMMA1_NORMS = {
    "pre_attention_norm": "input_layernorm",
    "pre_ffw_norm": "post_attention_layernorm",
}

# What transformers takes for a Gemma 3 text model where config.json has nothing.
_GEMMA3_DEFAULTS: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "max_position_embeddings": 131_072,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": None,
    "rope_theta": 1_000_000.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "use_cache": True,
    "vocab_size": 262_208,
}

# The smallest SigLIP that transformers builds: one layer, one 14 x 14 image of one patch.
VISION_CONFIG: dict[str, Any] = {
    "hidden_size": 8,
    "image_size": 14,
    "intermediate_size": 16,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 14,
    "vision_use_head": False,
}


def hf_tensors(oracle: OracleConfig, weights: Weights) -> Tensors:
    """The text model's tensors under Hugging Face's names, without the outer `model.`."""
    flat = {name.removeprefix("transformer/"): leaf for name, leaf in weights.items()}
    tensors: Tensors = {
        "embed_tokens.weight": flat["embedder"]["input_embedding"],
        "norm.weight": flat["final_norm"]["scale"],
    }
    for i in range(oracle.layers):
        layer = {
            name.removeprefix(f"layer_{i}/"): leaf
            for name, leaf in flat.items()
            if name.startswith(f"layer_{i}/")
        }
        matrices = out_in_matrices(oracle, layer).items()
        named = {_MATRICES[key]: array for key, array in matrices} | _norms(oracle, layer)
        tensors |= {f"layers.{i}.{name}.weight": array for name, array in named.items()}
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def _norms(oracle: OracleConfig, layer: Mapping[str, Mapping[str, Any]]) -> Tensors:
    names = _GEMMA1_NORMS if oracle.final_softcap is None and not oracle.qk_norm else _NORMS
    return {theirs: layer[ours]["scale"] for ours, theirs in names.items() if ours in layer}


def hf_config(name: str, oracle: OracleConfig) -> dict[str, Any]:
    """The config.json of a text model, with the fields that the hub's files have."""
    common = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "head_dim": oracle.head_dim,
        "hidden_size": oracle.width,
        "initializer_range": 0.02,
        "intermediate_size": oracle.hidden,
        "max_position_embeddings": CONTEXT_LENGTH,
        "num_attention_heads": oracle.heads,
        "num_hidden_layers": oracle.layers,
        "num_key_value_heads": oracle.kv_heads,
        "pad_token_id": 0,
        "rms_norm_eps": oracle.rms_eps,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": oracle.vocab,
    }
    of_family = {
        "gemma1": _gemma1_config,
        "gemma2": _gemma2_config,
        "gemma3": _gemma3_config,
        "vaultg": _vaultgemma_config,
    }
    return common | of_family[name[:6]](oracle)


def _gemma1_config(oracle: OracleConfig) -> dict[str, Any]:
    return {
        "architectures": ["GemmaForCausalLM"],
        "hidden_act": "gelu",  # which the hub's files say; the tanh approximation is meant
        "hidden_activation": None,
        "model_type": "gemma",
        "rope_scaling": None,
        "rope_theta": oracle.rope_bases[0],
        "transformers_version": "4.38.0.dev0",
    }


def _gemma2_config(oracle: OracleConfig) -> dict[str, Any]:
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": oracle.attention_softcap,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": oracle.final_softcap,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "model_type": "gemma2",
        "query_pre_attn_scalar": _query_scalar(oracle),
        "rope_theta": oracle.rope_bases[0],
        "sliding_window": oracle.windows[0],
        "transformers_version": "4.42.0.dev0",
    }


def _vaultgemma_config(oracle: OracleConfig) -> dict[str, Any]:
    kinds = [
        "full_attention" if window is None else "sliding_attention" for window in oracle.windows
    ]
    return {
        "architectures": ["VaultGemmaForCausalLM"],
        "attn_logit_softcapping": oracle.attention_softcap,
        "final_logit_softcapping": oracle.final_softcap,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": kinds,
        "model_type": "vaultgemma",
        "query_pre_attn_scalar": _query_scalar(oracle),
        "rope_parameters": {"rope_theta": oracle.rope_bases[0], "rope_type": "default"},
        "sliding_window": max(window or 0 for window in oracle.windows),
        "transformers_version": "4.57.0",
    }


def _gemma3_config(oracle: OracleConfig) -> dict[str, Any]:
    last = GLOBAL_EVERY - 1  # the first global layer
    factor = oracle.rope_factors[last]
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "attn_logit_softcapping": oracle.attention_softcap,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": oracle.final_softcap,
        "hidden_activation": "gelu_pytorch_tanh",
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": _query_scalar(oracle),
        "rope_local_base_freq": oracle.rope_bases[0],
        "rope_scaling": None if factor == 1.0 else {"factor": factor, "rope_type": "linear"},
        "rope_theta": oracle.rope_bases[last],
        "sliding_window": oracle.windows[0],
        "sliding_window_pattern": GLOBAL_EVERY,
        "transformers_version": "4.50.0.dev0",
    }


def _query_scalar(oracle: OracleConfig) -> int:
    return round(oracle.query_scale**-2)


def hf_multimodal_config(name: str) -> dict[str, Any]:
    """The config.json of a Gemma 3 that sees: like the real 4B's, without what is a default."""
    text = hf_config(name, PRESETS[name]) | {"vocab_size": PRESETS[name].vocab + EXTRA_ROWS}
    kept = {
        key: value
        for key, value in text.items()
        if key in _GEMMA3_DEFAULTS and value != _GEMMA3_DEFAULTS[key]
    }
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 5,
        "eoi_token_index": 6,
        "eos_token_id": [1, 106],
        "image_token_index": PRESETS[name].vocab,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 1,
        "model_type": "gemma3",
        "text_config": kept | {"model_type": "gemma3_text"},
        "torch_dtype": "float32",
        "transformers_version": "4.50.0.dev0",
        "vision_config": VISION_CONFIG,
    }


def write_hf(
    path: Path,
    name: str,
    weights: Weights,
    *,
    shards: int = 1,
    prefix: str = "model.",
    dtype: npt.DTypeLike = np.float32,
) -> Path:
    """Write a preset's text model as the directory `path`; ml_dtypes has bfloat16."""
    text = hf_tensors(PRESETS[name], weights)
    tensors = {f"{prefix}{key}": array for key, array in text.items()}
    return write_directory(path, hf_config(name, PRESETS[name]), tensors, shards, dtype)


def write_hf_multimodal(
    path: Path,
    name: str,
    weights: Weights,
    *,
    shards: int = 1,
    prefix: str = "language_model.model.",
    dtype: npt.DTypeLike = np.float32,
) -> Path:
    """Write a Gemma 3 preset as a model that sees; newer files' prefix is
    `model.language_model.`."""
    text = hf_tensors(PRESETS[name], weights)
    extra = ((0, EXTRA_ROWS), (0, 0))
    text["embed_tokens.weight"] = np.pad(text["embed_tokens.weight"], extra)
    tensors = {f"{prefix}{key}": array for key, array in text.items()}
    tensors |= _vision_tensors(PRESETS[name].width)
    return write_directory(path, hf_multimodal_config(name), tensors, shards, dtype)


def _vision_tensors(width: int) -> Tensors:
    """A few of the tensors that a reader of the text model has to leave alone."""
    hidden, patch = VISION_CONFIG["hidden_size"], VISION_CONFIG["patch_size"]
    embeddings = "vision_tower.vision_model.embeddings"
    return {
        f"{embeddings}.patch_embedding.weight": np.ones((hidden, 3, patch, patch), np.float32),
        f"{embeddings}.position_embedding.weight": np.ones((1, hidden), np.float32),
        "multi_modal_projector.mm_input_projection_weight": np.ones((hidden, width), np.float32),
        "multi_modal_projector.mm_soft_emb_norm.weight": np.ones(hidden, np.float32),
    }


def write_directory(
    path: Path, config: dict[str, Any], tensors: Tensors, shards: int, dtype: npt.DTypeLike
) -> Path:
    """Write config.json and so many safetensors files, with an index if there are several."""
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    kind = np.dtype(dtype)
    config = config | {"torch_dtype": kind.name}
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {name: array.astype(kind) for name, array in sorted(tensors.items())}
    if shards == 1:
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return path
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        mine = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in mine}, path / file, {"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    size = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return path
