"""The real model: log-probabilities and greedy texts."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf.quants import dequantize
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
)

from gemma_server.text.sentencepiece_model import model_from_pieces
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.weights.demo import demo_checkpoint
from scripts.goldens.files import GOLDENS, Record
from testing.tiny import GGUF_NORMS

TOP = 64  # ids kept of each scored position
ALL_POSITIONS_UP_TO = 200  # tokens; of longer texts every 8th position, and the last 48
GREEDY_STEPS = 32


def make_real(arguments: argparse.Namespace) -> Record:
    """real_270m.npz: the most likely ids at the scored positions of texts.json, and what follows.

    Arrays of all texts lie end to end, with offsets; ids and log-probabilities are sorted, the
    most likely first.
    """
    checkpoint = demo_checkpoint(arguments.cache_dir)
    reader = gguf.GGUFReader(checkpoint)
    model, tokenizer = real_model(reader), real_tokenizer(reader)
    texts = json.loads((GOLDENS / "texts.json").read_text())
    tokens = [tokenizer.encode(text["text"]) for text in texts]
    positions = [scored_positions(len(ids)) for ids in tokens]
    top_ids, top_logprobs, drawn, gaps = [], [], [], []
    for text, ids, at in zip(texts, tokens, positions, strict=True):
        best, logprobs = most_likely(model, ids, at)
        following, margins = greedy(model, ids)
        print(f"{text['name']}: {tokenizer.decode(following)!r}, gap {min(margins):.4f}")
        top_ids.append(best)
        top_logprobs.append(logprobs)
        drawn.append(following)
        gaps.append(margins)
    check_cache(model, tokens[-1], drawn[-1])
    np.savez_compressed(
        GOLDENS / "real_270m.npz",
        tokens=np.concatenate(tokens).astype(np.uint32),
        token_offsets=offsets(tokens),
        positions=np.concatenate(positions).astype(np.uint16),
        position_offsets=offsets(positions),
        top_ids=np.concatenate(top_ids).astype(np.uint32),
        top_logprobs=np.concatenate(top_logprobs).astype(np.float32),
        greedy=np.array(drawn, np.uint32),
        greedy_gaps=np.array(gaps, np.float32),
    )
    return {
        "model": "Gemma3ForCausalLM, float32, eager attention, CPU; no seed, nothing is drawn",
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "texts_sha256": hashlib.sha256((GOLDENS / "texts.json").read_bytes()).hexdigest(),
        "log_softmax": "summed in float64, kept as float32",
        "smallest_greedy_gap": round(float(np.min(gaps)), 6),
    }


def real_model(reader: gguf.GGUFReader) -> Gemma3ForCausalLM:
    """The library's Gemma 3 270M with the file's weights, dequantised."""
    config = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=32_768,
        query_pre_attn_scalar=256,
        sliding_window=512,
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
        attn_implementation="eager",
    )
    model = Gemma3ForCausalLM(config)
    state = {hf_name(tensor.name): hf_values(tensor) for tensor in reader.tensors}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()


_HF_OF_GGUF = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match name.split("."):
        case ["blk", layer, key, "weight"]:
            return f"model.layers.{layer}.{_HF_OF_GGUF[key]}.weight"
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight"
        case ["output_norm", "weight"]:
            return "model.norm.weight"
    raise SystemExit(f"what is {name}?")


def hf_values(tensor: Any) -> torch.Tensor:
    """The tensor's values; GGUF's norms are stored as 1 + w."""
    values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    is_norm = tensor.name.split(".")[-2] in {*GGUF_NORMS.values(), "output_norm"}
    return torch.from_numpy(values - np.float32(1) if is_norm else values)


def real_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    names = ("tokens", "scores", "token_type")
    pieces, scores, types = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in names)
    return Tokenizer(model_from_pieces(pieces, scores, types))


def scored_positions(length: int) -> npt.NDArray[np.int64]:
    """All of a short text; every 8th of a long one, and its last 48."""
    everywhere = np.arange(length)
    if length <= ALL_POSITIONS_UP_TO:
        return everywhere
    scored: npt.NDArray[np.int64] = everywhere[(everywhere % 8 == 0) | (everywhere >= length - 48)]
    return scored


def most_likely(
    model: Any, ids: Sequence[int], at: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The most likely next ids behind the positions, and their log-probabilities."""
    tokens = torch.tensor(ids)[None]
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=torch.from_numpy(at)).logits
    values, best = torch.log_softmax(logits[0].double(), dim=-1).topk(TOP)
    return best.numpy(), values.numpy()


def greedy(model: Any, ids: Sequence[int]) -> tuple[list[int], list[float]]:
    """What follows the ids, and by how much each next id's logit leads; nothing ends it."""
    drawn: list[int] = []
    gaps: list[float] = []
    tokens, cache = torch.tensor(ids)[None], None
    for _ in range(GREEDY_STEPS):
        out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        (first, second), (best, _) = out.logits[0, -1].topk(2)
        drawn.append(int(best))
        gaps.append(float(first - second))
        tokens, cache = best.reshape(1, 1), out.past_key_values
    return drawn, gaps


def check_cache(model: Any, ids: Sequence[int], drawn: Sequence[int]) -> None:
    """The library's cached steps are what its whole pass says, beyond the windows too."""
    tokens = torch.tensor([*ids, *drawn])[None]
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=len(drawn) + 1).logits
    if logits[0, :-1].argmax(dim=-1).tolist() != list(drawn):
        raise SystemExit("the greedy text is not that of a whole pass")


def offsets(rows: Sequence[Sequence[int] | npt.NDArray[Any]]) -> npt.NDArray[np.uint32]:
    return np.cumsum([0, *map(len, rows)]).astype(np.uint32)
