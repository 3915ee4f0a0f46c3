"""Gemma 4 in the files that people have: one model from all of them, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.text.chat_template import Gemma4Template, Message
from gemma_server.text.jinja_template import JinjaTemplate
from gemma_server.weights.gguf.gemma import GgufWeights
from gemma_server.weights.hugging_face.gemma import HuggingFaceWeights
from gemma_server.weights.open import open_weights
from gemma_server.weights.source import WeightSource, check
from testing.gemma4 import (
    gemma4_pieces,
    write_gemma4_gguf,
    write_gemma4_hf,
    write_gemma4_multimodal,
    write_gemma4_tokenizer,
)
from testing.models import oracle_logits
from testing.oracle.gemma4 import PRESETS
from testing.tiny import load_flat

NAMES = ["gemma4-e", "gemma4-kv", "gemma4-moe"]
Tree = dict[str, Any]


def _tree(source: WeightSource) -> tuple[GemmaConfig, Tree]:
    check(source)
    return replace(source.config, norm_eps=1e-6), load_flat(source, source.config)


def _assert_same(found: tuple[GemmaConfig, Tree], expected: tuple[GemmaConfig, Tree]) -> None:
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for path, array in expected[1].items():
        np.testing.assert_array_equal(found[1][path], array, err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_model(name: str, tmp_path: Path) -> None:
    expected = _tree(HuggingFaceWeights(write_gemma4_hf(tmp_path / "hf", name)))
    _assert_same(_tree(open_weights(write_gemma4_hf(tmp_path / "two", name, shards=2))), expected)
    _assert_same(_tree(open_weights(write_gemma4_multimodal(tmp_path / "mm", name))), expected)
    for other in (False, True):
        path = write_gemma4_gguf(
            tmp_path / f"{other}.gguf", name, with_dead=other, experts_apart=other
        )
        _assert_same(_tree(GgufWeights(path)), expected)


def test_keys_and_values_that_nothing_reads_are_dropped(tmp_path: Path) -> None:
    path = write_gemma4_hf(tmp_path / "hf", "gemma4-e")
    from safetensors.numpy import load_file, save_file

    file = path / "model.safetensors"
    tensors = load_file(file)
    for part in ("k_proj", "v_proj", "k_norm"):
        tensors[f"model.layers.9.self_attn.{part}.weight"] = np.ones((32, 64), np.float32)
    save_file(tensors, file, {"format": "pt"})
    check(open_weights(path))
    tensors["model.layers.2.self_attn.bias.weight"] = np.ones(3, np.float32)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"no place for the tensors .*layers\.2\.self_attn"):
        check(open_weights(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 8),
        ("num_hidden_layers", 9),
        ("hidden_size", 65),
        ("head_dim", 24),
        ("intermediate_size", 100),
        ("hidden_size_per_layer_input", 16),
        ("num_kv_shared_layers", 10),
        ("num_kv_shared_layers", 6),
        ("num_kv_shared_layers", -1),
        ("layer_types", ["sliding_attention"] * 9),
        ("layer_types", ["chunked_attention"] * 10),
        ("sliding_window", 0),
        ("rope_parameters", {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {}}),
        ("rope_parameters", {"full_attention": {}}),
        ("use_bidirectional_attention", "all"),
        ("hidden_activation", "silu"),
    ],
)
def test_a_config_that_contradicts_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    path = write_gemma4_hf(tmp_path / "hf", "gemma4-e", more={field: value})
    with pytest.raises(ModelLoadError) as refused:
        check(open_weights(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.head_count", 8),
        ("attention.key_length", 24),
        ("embedding_length", 65),
        ("block_count", 9),
        ("attention.shared_kv_layers", 10),
        ("attention.sliding_window_pattern", [True, False]),
    ],
)
def test_metadata_that_contradicts_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = write_gemma4_gguf(tmp_path / "m.gguf", "gemma4-e", metadata={f"gemma4.{key}": value})
    with pytest.raises(ModelLoadError, match=key.rpartition(".")[2].removesuffix("d_kv_layers")):
        check(open_weights(path))


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_merges_in_the_file_s_order(name: str, tmp_path: Path) -> None:
    """The scores are -1000 for every piece; runs of newlines are pieces of their own."""
    opened = open_checkpoint(write_gemma4_gguf(tmp_path / "m.gguf", name))
    pieces = gemma4_pieces(PRESETS[name].vocab)[0]
    ids = opened.tokenizer.encode("ab ab\n\na b<turn|>")
    expected = ["<bos>", "ab", "\u2581ab", "\n\n", "a", "\u2581", "b", "<turn|>"]
    assert [pieces[index] for index in ids] == expected
    assert opened.tokenizer.decode(ids) == "ab ab\n\na b"
    write_gemma4_tokenizer(tmp_path, name)
    other = open_checkpoint(write_gemma4_hf(tmp_path, name))
    assert other.tokenizer.encode("ab ab\n\na b<turn|>") == ids
    ends = {"<eos>", "<turn|>", "<|tool_response>"}
    assert opened.tokenizer.stop_ids == {pieces.index(end) for end in ends}


# The rules of the official templates for text alone, in their own language.
OFFICIAL = (
    "{{ bos_token }}"
    "{%- if messages[0].role == 'system' -%}"
    "{{ '<|turn>system\n' + messages[0].content | trim + '<turn|>\n' }}"
    "{%- set messages = messages[1:] -%}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- set role = 'model' if message.role == 'assistant' else message.role -%}"
    "{{ '<|turn>' + role + '\n' + message.content | trim + '<turn|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|turn>model\n' }}THOUGHT{%- endif -%}"
)
EMPTY_THOUGHT = "{{ '<|channel>thought\n<channel|>' }}"
CHATS = [
    [("user", " ab ")],
    [("system", "ab"), ("user", "a b")],
    [("user", "a"), ("assistant", " b "), ("user", "<turn|> a <|channel>")],
]


@pytest.mark.parametrize(("name", "thought"), [("gemma4-e", ""), ("gemma4-kv", EMPTY_THOUGHT)])
def test_chats_are_written_as_the_official_templates_do(
    name: str, thought: str, tmp_path: Path
) -> None:
    """The larger sizes are told not to think by a thought without words."""
    opened = open_checkpoint(write_gemma4_gguf(tmp_path / "m.gguf", name))
    assert isinstance(opened.chat, Gemma4Template)
    official = JinjaTemplate(OFFICIAL.replace("THOUGHT", thought), opened.tokenizer)
    for chat in CHATS:
        messages = [Message(role, content) for role, content in chat]  # type: ignore[arg-type]
        assert opened.chat.encode(messages) == official.encode(messages)
    answered = [Message("user", "a"), Message("assistant", "b")]
    assert opened.chat.encode(answered, goes_on=True) == official.encode(answered, goes_on=True)
    assert opened.chat.ids_after_answer() == official.ids_after_answer()


@pytest.fixture(params=NAMES)
def llama(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    """A model's name, and llama.cpp with its GGUF file."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(write_gemma4_gguf(tmp_path / "m.gguf", request.param))
    params.n_gpu_layers, params.n_parallel, params.n_ctx = 0, 1, 256
    params.fit_params = False
    params.cache_ram_mib = 0
    return request.param, xllamacpp.Server(params)


@pytest.mark.slow
def test_llama_cpp_agrees_on_the_same_file(llama: tuple[str, Any]) -> None:
    """Its keys and values are float16, and its chosen experts may flip: a wrong norm, window or
    rope moves these log-probabilities, which spread over 12 units, by units."""
    name, server = llama
    words = np.random.default_rng(3).integers(14, 270, 40).tolist()
    for length in (6, 15, 40):
        ids = [2, *words[:length]]
        answer = server.handle_completions(
            {
                "prompt": ids,
                "max_tokens": 1,
                "n_probs": PRESETS[name].vocab,
                "temperature": 0,
                "logit_bias": [[100, 1000]],  # it reports nothing of an end
            }
        )
        [first] = answer["choices"][0]["logprobs"]["content"]
        logits = oracle_logits(name, ids)[-1]
        expected = logits - np.log(np.exp(logits).sum())
        found = {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}
        assert len(found) > 250
        assert max(abs(expected[index] - found[index]) for index in found) < 0.3


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("t5gemma2", "an encoder"),
        ("recurrent_gemma", "recurrent"),
        ("diffusion_gemma", "token by token"),
        ("paligemma", "an image first"),
        ("gemma3n", "unlike"),
        ("gemma4_assistant", "drafts"),
        ("embedding_gemma2", "embeds"),
        ("llama", "it is no Gemma"),
    ],
)
def test_relatives_are_refused_with_the_reason(tmp_path: Path, kind: str, reason: str) -> None:
    path = write_gemma4_hf(tmp_path / "hf", "gemma4-kv", more={"model_type": kind})
    with pytest.raises(ModelLoadError, match=reason):
        open_weights(path)
