"""Tiny random models that embed texts: the oracle's weights, written as the files that people have.

Layouts: huggingface/transformers, `models/gemma3` and `models/embedding_gemma2`, and beside them
the folders of UKPLab/sentence-transformers. scripts/goldens loads what is written here into both.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.model.config import GemmaConfig
from gemma_server.text.sentencepiece_model import model_from_pieces
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.weights.hugging_face.gemma import HuggingFaceWeights
from testing.gemma4 import (
    GGUF_IN_BLOCKS,
    GGUF_OUTSIDE,
    write_gemma4_gguf_tokenizer,
    write_gemma4_tokenizer_of,
)
from testing.hugging_face import GLOBAL_EVERY, hf_config, hf_tensors, write_directory
from testing.oracle import gemma, gemma4
from testing.oracle.embedding import pooled
from testing.quality import GOLDENS
from testing.tiny import finish_gguf, gguf_tensors, load_params, tiny_pieces, write_tokenizer

NAMES = ("embedding", "embedding2")
TOLERANCE = 1e-5  # of the numbers of an embedding, whose length is 1, in float32
_SPAN = 12  # of the window, on both sides, as the file has it: it reaches 6 to each
_LOCAL = tuple(index % 6 != 5 for index in range(8))
FIRST = gemma.OracleConfig(
    layers=8, width=48, heads=3, kv_heads=1, head_dim=16, hidden=96, vocab=311,
    query_scale=16**-0.5, windows=tuple(_SPAN // 2 + 1 if local else None for local in _LOCAL),
    rope_bases=tuple(1e4 if local else 1e6 for local in _LOCAL), rope_factors=(1.0,) * 8,
    attention_softcap=None, final_softcap=None, qk_norm=True, post_norms=True, both_ways=True,
)  # fmt: skip
_REACH = 7  # of the window, to each side
SECOND = gemma4.OracleConfig(
    layers=6, width=48, heads=4, kv_heads=2, global_kv_heads=1, head_dim=16, global_head_dim=32,
    hidden=96, vocab=307, window=_REACH + 1, local=(True,) * 5 + (False,), per_layer=24,
    per_layer_table=False, rope_share=1.0, both_ways=True,
)  # fmt: skip
_DENSE = {"embedding": (96, 48), "embedding2": (72,)}
CONTEXT_LENGTH = 1024
Matrices = list[npt.NDArray[np.float32]]


@cache
def dense_of(name: str) -> Matrices:
    """The matrices behind the mean, [out, in]."""
    rng, before = np.random.default_rng(41), FIRST.width if name == "embedding" else SECOND.width
    matrices = []
    for width in _DENSE[name]:
        matrices.append((rng.standard_normal((width, before)) / before**0.5).astype(np.float32))
        before = width
    return matrices


@cache
def _weights(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(40)
    if name == "embedding":
        return gemma.random_weights(FIRST, rng)
    return gemma4.random_weights(SECOND, rng)


def tokenizer_of(name: str) -> Tokenizer:
    """The tokenizer that its files have, for the first alone."""
    assert name == "embedding"
    return Tokenizer(model_from_pieces(*tiny_pieces(FIRST.vocab)))


def oracle_embedding(name: str, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """The embedding from the equations."""
    if name == "embedding":
        hidden = gemma.hidden(FIRST, _weights(name), ids)
    else:
        hidden = gemma4.hidden(SECOND, _weights(name), ids)
    return pooled(hidden, dense_of(name))


@cache
def read_golden(name: str) -> list[tuple[list[int], npt.NDArray[np.float32]]]:
    """Texts as ids, and the embedding that the Hugging Face library has for each."""
    with np.load(GOLDENS / "embedding.npz") as file:
        texts, vectors = file[f"{name}.ids"], file[f"{name}.embeddings"]
        ends = np.cumsum(file[f"{name}.lengths"])
    parts = np.split(texts, ends[:-1])
    return [(ids.tolist(), vector) for ids, vector in zip(parts, vectors, strict=True)]


def embedding_config(name: str) -> dict[str, Any]:
    """The config.json, as transformers writes it."""
    if name == "embedding":
        kinds = ["sliding_attention" if local else "full_attention" for local in _LOCAL]
        return hf_config("gemma3", FIRST) | {
            "_sliding_window_pattern": GLOBAL_EVERY,
            "architectures": ["Gemma3TextModel"],
            "layer_types": kinds,
            "max_position_embeddings": CONTEXT_LENGTH,
            "sliding_window": _SPAN,
            "use_bidirectional_attention": True,
        }
    c = SECOND
    text = {
        "attention_bias": False,
        "embedding_dim": _DENSE[name][-1],
        "head_dim": c.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": c.width,
        "hidden_size_per_layer_input": c.per_layer,
        "intermediate_size": c.hidden,
        "layer_types": ["sliding_attention" if local else "full_attention" for local in c.local],
        "max_position_embeddings": CONTEXT_LENGTH,
        "model_type": "embedding_gemma2_text",
        "num_attention_heads": c.heads,
        "num_hidden_layers": c.layers,
        "num_key_value_heads": c.kv_heads,
        "per_layer_config": {
            str(index): {
                "head_dim": c.global_head_dim,
                "num_key_value_heads": c.global_kv_heads,
            }
            for index, local in enumerate(c.local)
            if not local
        },
        "rms_norm_eps": c.eps,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1_000_000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
        },
        "sliding_window": _REACH,
        "vocab_size": c.vocab,
    }
    return {
        "architectures": ["EmbeddingGemma2Model"],
        "audio_config": None,
        "model_type": "embedding_gemma2",
        "text_config": text,
        "vision_config": None,
    }


def write_embedding_hf(
    path: Path,
    name: str,
    *,
    dense: bool = True,
    dtype: npt.DTypeLike = np.float32,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as the directory `path`, with its tokenizer; `more` is written over its
    config.json. Without `dense` there is nothing of sentence-transformers."""
    config = embedding_config(name) | dict(more or {})
    write_directory(path, config, _hf_tensors(name), 1, dtype)
    if name == "embedding":
        write_tokenizer(path / "tokenizer.model", FIRST.vocab)
    else:
        write_gemma4_tokenizer_of(path, SECOND.vocab)
    if dense:
        _write_modules(path, dense_of(name) if name == "embedding" else [])
    return path


def _hf_tensors(name: str) -> dict[str, npt.NDArray[Any]]:
    if name == "embedding":
        return hf_tensors(FIRST, _weights(name))
    tensors = {_second_name(key): array for key, array in _weights(name).items()}
    tensors["embedding_projection.weight"] = dense_of(name)[0]
    return {f"language_model.{key}": array for key, array in tensors.items()}


def _second_name(gemma4_s: str) -> str:
    if gemma4_s.startswith("per_layer_"):
        return f"ple.{gemma4_s}"
    for part in ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"):
        gemma4_s = gemma4_s.replace(f".{part}.", f".ple_block.{part}.")
    return gemma4_s


def _write_modules(path: Path, dense: Matrices) -> None:
    from safetensors.numpy import save_file

    def write(folder: str, config: Mapping[str, Any]) -> None:
        (path / folder).mkdir(exist_ok=True)
        (path / folder / "config.json").write_text(json.dumps(config))

    folders = {"": "Transformer", "1_Pooling": "Pooling"}
    width = (dense[0] if dense else dense_of("embedding2")[0]).shape[1 if dense else 0]
    modes = {"cls_token": False, "mean_tokens": True, "max_tokens": False}
    pooling = {f"pooling_mode_{mode}": on for mode, on in modes.items()}
    write("1_Pooling", {"word_embedding_dimension": width, **pooling, "include_prompt": True})
    for index, matrix in enumerate(dense):
        folder = f"{index + 2}_Dense"
        folders[folder] = "Dense"
        identity = "torch.nn.modules.linear.Identity"
        sizes = {"in_features": matrix.shape[1], "out_features": matrix.shape[0]}
        write(folder, {**sizes, "bias": False, "activation_function": identity})
        save_file({"linear.weight": matrix}, path / folder / "model.safetensors", {"format": "pt"})
    folders[f"{len(folders)}_Normalize"] = "Normalize"
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": folder,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (folder, kind) in enumerate(folders.items())
    ]
    (path / "modules.json").write_text(json.dumps(modules, indent=2))


def write_embedding_gguf(
    path: Path, name: str, *, dense: bool = True, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write a model as llama.cpp's converter would, in f32, with its tokenizer. `metadata` is
    written over its own; None leaves a key out."""
    import gguf

    writer = gguf.GGUFWriter(path, "gemma-embedding" if name == "embedding" else "gemma-embedding2")
    is_first = name == "embedding"
    tensors = _first_gguf(writer, dense) if is_first else _second_gguf(writer)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor, values in tensors.items():
        writer.add_tensor(tensor, np.ascontiguousarray(values, np.float32))
    finish_gguf(writer)
    return path


def _first_gguf(writer: Any, dense: bool) -> dict[str, npt.NDArray[Any]]:
    c = FIRST
    _write_sizes(writer, c)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_sliding_window(_SPAN)
    writer.add_rope_freq_base(1_000_000.0)
    pieces, scores, types = tiny_pieces(c.vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    tensors = gguf_tensors(c, _weights("embedding"))
    if dense:
        for number, matrix in zip((2, 3), dense_of("embedding"), strict=True):
            tensors[f"dense_{number}.weight"] = matrix
            writer.add_uint32(f"gemma-embedding.dense_{number}_feat_in", matrix.shape[1])
            writer.add_uint32(f"gemma-embedding.dense_{number}_feat_out", matrix.shape[0])
    return tensors


def _second_gguf(writer: Any) -> dict[str, npt.NDArray[Any]]:
    c, weights = SECOND, _weights("embedding2")
    _write_sizes(writer, c)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count_kv([c.kv_heads_of(layer) for layer in range(c.layers)])
    for add, add_local in (
        (writer.add_key_length, writer.add_key_length_swa),
        (writer.add_value_length, writer.add_value_length_swa),
        (writer.add_rope_dimension_count, writer.add_rope_dimension_count_swa),
    ):
        add(c.global_head_dim)
        add_local(c.head_dim)
    writer.add_sliding_window(2 * _REACH)
    writer.add_sliding_window_pattern(list(c.local))
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_rope_freq_base_swa(10_000.0)
    writer.add_embedding_length_per_layer_input(c.per_layer)
    writer.add_uint32("gemma-embedding2.embedding_length_out", _DENSE["embedding2"][-1])
    write_gemma4_gguf_tokenizer(writer, c.vocab)
    tensors = {theirs: weights[ours] for theirs, ours in GGUF_OUTSIDE.items() if ours in weights}
    for layer in range(c.layers):
        for theirs, ours in GGUF_IN_BLOCKS.items():
            if (full := f"layers.{layer}.{ours}") in weights:
                tensors[f"blk.{layer}.{theirs}"] = weights[full]
    return tensors | {"output.weight": dense_of("embedding2")[0]}


def _write_sizes(writer: Any, c: gemma.OracleConfig | gemma4.OracleConfig) -> None:
    writer.add_block_count(c.layers)
    writer.add_embedding_length(c.width)
    writer.add_head_count(c.heads)
    writer.add_layer_norm_rms_eps(1e-6)


@cache
def embedding_model(name: str) -> tuple[GemmaConfig, dict[str, Any]]:
    """A model's architecture and parameter tree in f32, through files on disk."""
    with TemporaryDirectory() as folder:
        source = HuggingFaceWeights(write_embedding_hf(Path(folder) / "hf", name))
        return source.config, load_params(source, source.config)
