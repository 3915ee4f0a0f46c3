"""Write a Gemma 4 of a released size with random 8-bit weights, as GGUF, for `decode --model`.

    python -m benchmarks.shaped gemma-4-e2b FILE

Neither speed nor memory depends on the values. Matrices are Q8_0, scales float32, and the
tokenizer is the demo model's with Gemma 4's turn markers. The whole file is in memory once.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.model.config import GemmaConfig, LayerConfig
from gemma_server.model.presets import RELEASED, Preset
from gemma_server.settings import default_cache_dir
from gemma_server.text.family import GEMMA, GEMMA4
from gemma_server.weights.demo import demo_checkpoint
from gemma_server.weights.gguf.gemma import GgufWeights
from testing.tiny import finish_gguf

BLOCK = 32  # weights that share a float16 scale
_POOL_BLOCKS = 1 << 18  # random ones, used again and again


def main() -> None:
    """Write the file."""
    rows = {row.name: row for row in RELEASED if row.output_scale}
    parser = argparse.ArgumentParser(prog="benchmarks.shaped", description="random Gemma 4s")
    parser.add_argument("name", choices=rows)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    write(options.file, rows[options.name])


def write(path: Path, row: Preset) -> None:
    """Write the model."""
    import gguf

    config, writer = row.config(), gguf.GGUFWriter(path, "gemma4")
    _write_metadata(writer, row, config)
    _write_tokenizer(writer)
    pool = _random_blocks()
    for name, shape in _tensors(config):
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        row_bytes = shape[-1] // BLOCK * pool.shape[1]
        raw = np.resize(pool, (*shape[:-1], row_bytes))
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    half = (row.global_head_dim or row.head_dim) // 2
    turning = np.arange(half) < row.global_rope_share * half
    writer.add_tensor("rope_freqs.weight", np.where(turning, 1.0, 1e30).astype(np.float32))
    finish_gguf(writer)


def _random_blocks() -> npt.NDArray[np.uint8]:
    """Blocks of Q8_0: [blocks, bytes]."""
    rng = np.random.default_rng(0)
    blocks = np.empty((_POOL_BLOCKS, 2 + BLOCK), np.uint8)
    scale = np.float16(0.02 / 127)
    blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    values = rng.integers(-127, 128, (_POOL_BLOCKS, BLOCK), np.int8)
    blocks[:, 2:] = values.view(np.uint8)
    return blocks


def _tensors(config: GemmaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names, as llama.cpp's converter writes them, and shapes."""
    width, own = config.width, config.per_layer_width
    yield "token_embd.weight", (config.vocab, width)
    yield "output_norm.weight", (width,)
    if own is not None:
        yield "per_layer_token_embd.weight", (config.vocab, len(config.layers) * own)
        yield "per_layer_model_proj.weight", (len(config.layers) * own, width)
        yield "per_layer_proj_norm.weight", (own,)
    for index, layer in enumerate(config.layers):
        for name, shape in _of_layer(config, layer):
            yield f"blk.{index}.{name}", shape


def _of_layer(config: GemmaConfig, layer: LayerConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, own, h = config.width, config.per_layer_width, layer.head_dim
    yield "attn_q.weight", (layer.heads * h, width)
    yield "attn_q_norm.weight", (h,)
    if layer.kv_layer is None:
        yield "attn_k.weight", (layer.kv_heads * h, width)
        yield "attn_k_norm.weight", (h,)
        if not layer.keys_are_values:
            yield "attn_v.weight", (layer.kv_heads * h, width)
    yield "attn_output.weight", (width, layer.heads * h)
    yield "ffn_gate.weight", (layer.hidden, width)
    yield "ffn_up.weight", (layer.hidden, width)
    yield "ffn_down.weight", (width, layer.hidden)
    for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
        yield f"{norm}.weight", (width,)
    if own is not None:
        yield "inp_gate.weight", (own, width)
        yield "proj.weight", (width, own)
        yield "post_norm.weight", (width,)
    if (experts := config.experts) is not None:
        for norm in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
            yield f"{norm}.weight", (width,)
        yield "ffn_gate_inp.weight", (experts.count, width)
        yield "ffn_gate_inp.scale", (width,)
        yield "ffn_gate_up_exps.weight", (experts.count, 2 * experts.hidden, width)
        yield "ffn_down_exps.weight", (experts.count, width, experts.hidden)
        yield "ffn_down_exps.scale", (experts.count,)
    yield "layer_output_scale.weight", (1,)


def _write_metadata(writer: Any, row: Preset, config: GemmaConfig) -> None:
    wide = row.global_head_dim or row.head_dim
    writer.add_block_count(len(config.layers))
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length([layer.hidden for layer in config.layers])
    writer.add_head_count(row.heads)
    writer.add_head_count_kv([layer.kv_heads for layer in config.layers])
    for add, size in (
        (writer.add_key_length, wide),
        (writer.add_value_length, wide),
        (writer.add_rope_dimension_count, wide),
        (writer.add_key_length_swa, row.head_dim),
        (writer.add_value_length_swa, row.head_dim),
        (writer.add_rope_dimension_count_swa, row.head_dim),
    ):
        add(size)
    writer.add_rope_freq_base(row.global_rope_base)
    writer.add_rope_freq_base_swa(row.local_rope_base)
    writer.add_sliding_window(row.window)
    writer.add_sliding_window_pattern([layer.window is not None for layer in config.layers])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_final_logit_softcapping(config.final_softcap)
    writer.add_shared_kv_layers(row.sharing_layers)
    writer.add_embedding_length_per_layer_input(config.per_layer_width or 0)
    if config.experts is not None:
        writer.add_expert_count(config.experts.count)
        writer.add_expert_used_count(config.experts.chosen)
        writer.add_expert_feed_forward_length(config.experts.hidden)


def _write_tokenizer(writer: Any) -> None:
    pieces, scores, types = GgufWeights(demo_checkpoint(default_cache_dir())).tokenizer_pieces
    renamed = {
        GEMMA.start_of_turn: GEMMA4.start_of_turn,
        GEMMA.end_of_turn: GEMMA4.end_of_turn,
    }
    writer.add_tokenizer_model("llama")
    writer.add_token_list([renamed.get(piece, piece) for piece in pieces])
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(pieces.index("<bos>"))
    writer.add_eos_token_id(pieces.index("<eos>"))
    writer.add_eot_token_id(pieces.index(GEMMA.end_of_turn))


if __name__ == "__main__":
    main()
