"""Tiny random Gemma 4s: the oracle's weights, written as the checkpoints that people have."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.model.config import GemmaConfig
from gemma_server.text.family import GEMMA4
from gemma_server.weights.hugging_face.gemma import HuggingFaceWeights
from testing.hugging_face import write_directory
from testing.oracle.gemma4 import PRESETS, OracleConfig, random_weights
from testing.tiny import finish_gguf, load_params

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
    path: Path,
    name: str,
    *,
    shards: int = 1,
    dtype: npt.DTypeLike = np.float32,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a preset as the directory `path`; `more` is written over its config.json."""
    tensors = {f"model.{key}": array for key, array in gemma4_weights(name).items()}
    return write_directory(path, gemma4_config(name) | dict(more or {}), tensors, shards, dtype)


def write_gemma4_multimodal(path: Path, name: str) -> Path:
    """Write a preset as the text part of a model that sees and hears."""
    tensors = {f"model.language_model.{key}": array for key, array in gemma4_weights(name).items()}
    tensors |= {
        f"model.{tower}.weight": np.ones((3, 3), np.float32)
        for tower in ("vision_tower.x", "embed_vision.x", "audio_tower.x", "embed_audio.x")
    }
    whole = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "text_config": gemma4_config(name) | {"use_bidirectional_attention": "vision"},
        "tie_word_embeddings": True,
    }
    return write_directory(path, whole, tensors, 1, np.float32)


@cache
def gemma4_model(name: str) -> tuple[GemmaConfig, dict[str, Any]]:
    """A preset's architecture and parameter tree in f32, through files on disk."""
    with TemporaryDirectory() as folder:
        source = HuggingFaceWeights(write_gemma4_hf(Path(folder) / "hf", name))
        return source.config, load_params(source, source.config)


MERGES = ["a b", "\u2581 ab", "\n \n"]


def gemma4_pieces(vocab: int) -> tuple[list[str], list[float], list[int]]:
    """One token per byte, Gemma 4's control tokens, and what `MERGES` makes, filled up: text,
    score, type. The scores say nothing."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *GEMMA4.markers]
    types = [3] * len(pieces)
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    merged = ["\u2581", "a", "b", "\n", *(merge.replace(" ", "") for merge in MERGES)]
    pieces += merged
    types += [6] * 256 + [1] * len(merged)
    types[pieces.index("<unk>")] = 2
    extra = vocab - len(pieces)
    pieces += [f"extra{index}" for index in range(extra)]
    return pieces, [-1000.0] * vocab, types + [1] * extra


def write_gemma4_tokenizer(path: Path, name: str) -> None:
    """Write a preset's tokenizer.json into a directory."""
    write_gemma4_tokenizer_of(path, PRESETS[name].vocab)


def write_gemma4_tokenizer_of(path: Path, vocab: int) -> None:
    """Write the tokenizer.json of `gemma4_pieces` into a directory."""
    pieces, _, _ = gemma4_pieces(vocab)
    special = {piece: index for index, piece in enumerate(pieces[: pieces.index("<0x00>")])}
    document = {
        "added_tokens": [
            {"id": index, "content": piece, "special": True} for piece, index in special.items()
        ],
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }
    (path / "tokenizer.json").write_text(json.dumps(document))


# llama.cpp's names of a layer's tensors -> transformers'.
GGUF_IN_BLOCKS = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
    "layer_output_scale.weight": "layer_scalar",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
}
GGUF_OUTSIDE = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "per_layer_token_embd.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
}


def write_gemma4_gguf(
    path: Path,
    name: str,
    *,
    with_dead: bool = False,
    experts_apart: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a preset as llama.cpp's converter would, in f32, with its tokenizer. `with_dead`: the
    keys and values, too, of layers that use another's. `experts_apart`: their gates and their ups
    in two tensors. `metadata` is written over its own; None leaves a key
    out."""
    import gguf

    c, weights = PRESETS[name], gemma4_weights(name)
    writer = gguf.GGUFWriter(path, "gemma4")
    _write_metadata(writer, c)
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    tensors = {theirs: weights[ours] for theirs, ours in GGUF_OUTSIDE.items() if ours in weights}
    half = c.global_head_dim // 2
    tensors["rope_freqs.weight"] = np.where(np.arange(half) < half // 4, 1.0, 1e30)
    for layer in range(c.layers):
        for theirs, ours in GGUF_IN_BLOCKS.items():
            if (full := f"layers.{layer}.{ours}") in weights:
                tensors[f"blk.{layer}.{theirs}"] = weights[full]
        if with_dead and c.shares(layer):
            h, k = c.head_dim_of(layer), c.kv_heads_of(layer)
            for dead in ("attn_k", "attn_v"):
                tensors[f"blk.{layer}.{dead}.weight"] = np.full((k * h, c.width), 7.0)
            tensors[f"blk.{layer}.attn_k_norm.weight"] = np.full(h, 7.0)
    if experts_apart:
        for fused in [tensor for tensor in tensors if "gate_up_exps" in tensor]:
            gate, up = np.split(tensors.pop(fused), 2, axis=1)
            tensors[fused.replace("gate_up", "gate")] = gate
            tensors[fused.replace("gate_up", "up")] = up
    for tensor, values in tensors.items():
        writer.add_tensor(tensor, np.ascontiguousarray(values, np.float32))
    finish_gguf(writer)
    return path


def _write_metadata(writer: Any, c: OracleConfig) -> None:
    writer.add_block_count(c.layers)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(c.width)
    writer.add_feed_forward_length([c.hidden_of(layer) for layer in range(c.layers)])
    writer.add_head_count(c.heads)
    writer.add_head_count_kv([c.kv_heads_of(layer) for layer in range(c.layers)])
    writer.add_key_length(c.global_head_dim)
    writer.add_value_length(c.global_head_dim)
    writer.add_key_length_swa(c.head_dim)
    writer.add_value_length_swa(c.head_dim)
    writer.add_rope_dimension_count(c.global_head_dim)
    writer.add_rope_dimension_count_swa(c.head_dim)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_rope_freq_base_swa(10_000.0)
    writer.add_sliding_window(c.window)
    writer.add_sliding_window_pattern(list(c.local))
    writer.add_layer_norm_rms_eps(c.eps)
    writer.add_final_logit_softcapping(c.softcap)
    writer.add_shared_kv_layers(c.sharing)
    writer.add_embedding_length_per_layer_input(c.per_layer)
    if c.experts:
        writer.add_expert_count(c.experts)
        writer.add_expert_used_count(c.chosen)
        writer.add_expert_feed_forward_length(c.expert_hidden)
    write_gemma4_gguf_tokenizer(writer, c.vocab)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)


def write_gemma4_gguf_tokenizer(writer: Any, vocab: int) -> None:
    """Write the tokenizer of `gemma4_pieces`, but for the ids of its beginning and end."""
    pieces, scores, types = gemma4_pieces(vocab)
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_token_merges(MERGES)
    writer.add_eot_token_id(pieces.index(GEMMA4.end_of_turn))
