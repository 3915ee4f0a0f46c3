"""Tiny random Gemmas: the oracle's weights, written as the checkpoints that people have."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from gemma_server.engine.fake import fake_pieces
from gemma_server.model.config import GemmaConfig, stays_float32
from gemma_server.model.presets import Preset
from gemma_server.text.sentencepiece_model import model_from_pieces
from gemma_server.weights.blocks import Blocks, pack
from gemma_server.weights.gguf.container import GgufFile
from gemma_server.weights.orbax.gemma import OrbaxWeights
from gemma_server.weights.source import OWN_TABLE, WeightSource, load_leaves
from testing.oracle.gemma import PRESETS, OracleConfig, random_weights

# Kaggle's names of a layer's norms -> llama.cpp's.
GGUF_NORMS = {
    "pre_attention_norm": "attn_norm",
    "post_attention_norm": "post_attention_norm",
    "pre_ffw_norm": "ffn_norm",
    "post_ffw_norm": "post_ffw_norm",
    "attn/_query_norm": "attn_q_norm",
    "attn/_key_norm": "attn_k_norm",
}

_GGUF_MATRICES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}

GGUF_NAMES = [name for name in PRESETS if name != "vaultgemma"]  # llama.cpp has no such model
Weights = dict[str, dict[str, npt.NDArray[np.float32]]]


def tiny_weights(name: str, *, seed: int = 0) -> Weights:
    """Random weights of a preset, in Kaggle's flat layout."""
    transposed = name not in ("gemma1-mqa", "gemma1-mha")
    return random_weights(PRESETS[name], np.random.default_rng(seed), gating_transposed=transposed)


def tiny_pieces(vocab: int) -> tuple[list[str], list[float], list[int]]:
    """One token per byte and the control tokens, filled up to `vocab` pieces: text, score, type."""
    pieces, scores, types = fake_pieces()
    extra = vocab - len(pieces)
    pieces += [f"extra{index}" for index in range(extra)]
    return pieces, scores + [0.0] * extra, types + [1] * extra


def write_tokenizer(path: Path, vocab: int) -> Path:
    """Write the tokenizer of `tiny_pieces` as a SentencePiece model."""
    path.write_bytes(model_from_pieces(*tiny_pieces(vocab)))
    return path


def tiny_config(name: str, context_length: int = 512) -> GemmaConfig:
    """The same architecture as the oracle's preset, layer by layer."""
    return tiny_preset(name, context_length).config()


def tiny_preset(name: str, context_length: int = 512) -> Preset:
    """The same architecture as the oracle's preset, in our words."""
    oracle = PRESETS[name]
    local = tuple(window is not None for window in oracle.windows)
    first_global = local.index(False)
    return Preset(
        name=name,
        layers=oracle.layers,
        width=oracle.width,
        heads=oracle.heads,
        kv_heads=oracle.kv_heads,
        head_dim=oracle.head_dim,
        hidden=oracle.hidden,
        vocab=oracle.vocab,
        context_length=context_length,
        query_scale=oracle.query_scale,
        global_every=first_global + 1,
        local_layers=None if local[0] == any(local) else local,  # None: a period says it
        window=max(window or 0 for window in oracle.windows) or None,
        attention_softcap=oracle.attention_softcap,
        final_softcap=oracle.final_softcap,
        qk_norm=oracle.qk_norm,
        post_norms=oracle.post_norms,
        local_rope_base=oracle.rope_bases[0],
        global_rope_base=oracle.rope_bases[first_global],
        global_rope_factor=oracle.rope_factors[first_global],
        norm_eps=oracle.rms_eps,
    )


def write_orbax(path: Path, weights: Mapping[str, Any], **options: bool) -> Path:
    """Save the tree as Orbax does; the flat one is how Kaggle ships it."""
    import orbax.checkpoint as ocp

    ocp.PyTreeCheckpointer(**options).save(path, weights)
    return path


def write_gguf(
    path: Path, name: str, weights: Weights, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write the weights as llama.cpp's converter would, in f32, with its tokenizer.

    `metadata` is written over its own; None leaves a key out.
    """
    from gguf import GGUFValueType

    writer = gguf_writer(path, name, PRESETS[name])
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            writer.add_key_value(key, value, GGUFValueType.get_type(value))
    for tensor, values in gguf_tensors(PRESETS[name], weights).items():
        writer.add_tensor(tensor, np.ascontiguousarray(values, np.float32))
    finish_gguf(writer)
    return path


def finish_gguf(writer: Any) -> None:
    """Write all that the writer was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_writer(path: Path, name: str, oracle: OracleConfig) -> Any:
    """A GGUF writer that has all metadata; `name` begins with the family."""
    import gguf

    architecture = {"gemma1": "gemma", "gemma2": "gemma2", "gemma3": "gemma3"}[name[:6]]
    writer = gguf.GGUFWriter(path, architecture)
    _write_metadata(writer, oracle)
    pieces, scores, types = tiny_pieces(oracle.vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    return writer


def _write_metadata(writer: Any, oracle: OracleConfig) -> None:
    writer.add_block_count(oracle.layers)
    writer.add_embedding_length(oracle.width)
    writer.add_feed_forward_length(oracle.hidden)
    writer.add_head_count(oracle.heads)
    writer.add_head_count_kv(oracle.kv_heads)
    writer.add_key_length(oracle.head_dim)
    writer.add_context_length(512)
    if oracle.windows[0] is not None:
        writer.add_sliding_window(oracle.windows[0])
    if oracle.attention_softcap is not None:
        writer.add_attn_logit_softcapping(oracle.attention_softcap)
    if oracle.final_softcap is not None:
        writer.add_final_logit_softcapping(oracle.final_softcap)
    writer.add_rope_freq_base(max(oracle.rope_bases))
    if max(oracle.rope_factors) != 1.0:
        writer.add_rope_scaling_factor(max(oracle.rope_factors))


def gguf_tensors(oracle: OracleConfig, weights: Weights) -> dict[str, npt.NDArray[Any]]:
    """Names and layouts of llama.cpp's converter: matrices [out, in], norms stored as 1 + w."""
    flat = {name.removeprefix("transformer/"): leaf for name, leaf in weights.items()}
    tensors: dict[str, npt.NDArray[Any]] = {
        "token_embd.weight": flat["embedder"]["input_embedding"],
        "output_norm.weight": 1 + flat["final_norm"]["scale"],
    }
    for i in range(oracle.layers):
        layer = {
            name.removeprefix(f"layer_{i}/"): leaf
            for name, leaf in flat.items()
            if name.startswith(f"layer_{i}/")
        }
        matrices = {
            _GGUF_MATRICES[name]: array for name, array in out_in_matrices(oracle, layer).items()
        }
        matrices |= {
            theirs: 1 + layer[ours]["scale"] for ours, theirs in GGUF_NORMS.items() if ours in layer
        }
        tensors |= {f"blk.{i}.{key}.weight": value for key, value in matrices.items()}
    return tensors


def out_in_matrices(
    oracle: OracleConfig, layer: Mapping[str, Mapping[str, Any]]
) -> dict[str, npt.NDArray[Any]]:
    """One layer's matrices, each [out, in], as GGUF and safetensors have them."""
    if "attn/qkv_einsum" in layer:
        q, k, v = layer["attn/qkv_einsum"]["w"]
    else:
        q, (k, v) = layer["attn/q_einsum"]["w"], layer["attn/kv_einsum"]["w"]
    gate, up = layer["mlp/gating_einsum"]["w"]
    if gate.shape != (oracle.hidden, oracle.width):
        gate, up = gate.T, up.T
    return {
        "q": q.transpose(0, 2, 1).reshape(-1, oracle.width),
        "k": k.transpose(0, 2, 1).reshape(-1, oracle.width),
        "v": v.transpose(0, 2, 1).reshape(-1, oracle.width),
        "output": layer["attn/attn_vec_einsum"]["w"].reshape(-1, oracle.width).T,
        "gate": gate,
        "up": up,
        "down": layer["mlp/linear"]["w"].T,
    }


def read_tensor(file: GgufFile, name: str) -> npt.NDArray[np.float32]:
    """A tensor of a GGUF file in f32."""
    out = np.empty(file.tensors[name].shape, np.float32)
    file.copy(name, out)
    return out


@dataclass(frozen=True)
class Leaf:
    """What a loader is told of one leaf of the parameter tree."""

    shape: tuple[int, ...]
    dtype: npt.DTypeLike


def load_flat(
    source: WeightSource, config: GemmaConfig, dtype: npt.DTypeLike = np.float32
) -> dict[str, npt.NDArray[Any]]:
    """The runner's parameters by path, matrices in `dtype`."""
    wanted = {
        path: Leaf(shape, np.float32 if stays_float32(path) else dtype)
        for path, shape in config.leaf_shapes.items()
    }
    return cast(
        dict[str, npt.NDArray[Any]], dict(load_leaves(source, wanted, lambda done, total: None))
    )


def stored_rows(source: WeightSource) -> npt.NDArray[np.float32]:
    """All rows of the source's own table, widened by the model from what is stored."""
    import jax.numpy as jnp

    from gemma_server.model.stored_rows import StoredRows

    table, shape = source.own_table, source.config.leaf_shapes[OWN_TABLE]
    assert table is not None
    units, first = table.open()
    assert units.shape == (table.layout.units, table.layout.unit)
    stored = StoredRows(jnp.asarray(units), jnp.int32(first), table.layout.kind, shape[1])
    return np.asarray(stored.rows(jnp.arange(shape[0])))


def load_params(source: WeightSource, config: GemmaConfig) -> dict[str, Any]:
    """The runner's parameter tree in f32."""
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    leaves = {path: jnp.asarray(array) for path, array in load_flat(source, config).items()}
    params: dict[str, Any] = unflatten_dict(leaves, sep="/")
    return params


@cache
def tiny_params(name: str) -> dict[str, Any]:
    """A preset's parameter tree in f32, through a flat Orbax checkpoint on disk."""
    with TemporaryDirectory() as folder:
        path = write_orbax(Path(folder) / "checkpoint", tiny_weights(name))
        return load_params(OrbaxWeights(path), tiny_config(name))


def quantized(blocks: Blocks, shape: tuple[int, int] | None = None) -> Any:
    """The blocks on the device; without a shape they have no filling."""
    import jax.numpy as jnp

    from gemma_server.model.quantized import Quantized

    values, scales = pack(blocks)
    return Quantized(jnp.asarray(values), jnp.asarray(scales), shape or blocks.values.shape)
