"""Gemma 4 in the files that people have: one model from all of them, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.text.chat import Message
from gemma_server.text.gemma4_template import Gemma4Template
from gemma_server.text.jinja_template import JinjaTemplate
from gemma_server.weights.gguf.gemma import GgufWeights
from gemma_server.weights.hugging_face.gemma import HuggingFaceWeights
from gemma_server.weights.open import open_weights
from gemma_server.weights.source import OWN_TABLE, WeightSource, check, open_table
from testing.gemma4 import (
    gemma4_config,
    gemma4_pieces,
    write_gemma4_gguf,
    write_gemma4_hf,
    write_gemma4_multimodal,
    write_gemma4_tokenizer,
)
from testing.models import oracle_logits
from testing.oracle.gemma4 import PRESETS
from testing.tiny import load_flat, stored_rows

NAMES = ["gemma4-e", "gemma4-kv", "gemma4-moe"]
Tree = dict[str, Any]


def _tree(source: WeightSource) -> tuple[GemmaConfig, Tree]:
    check(source)
    tree = load_flat(source, source.config)
    if OWN_TABLE in tree:
        np.testing.assert_array_equal(stored_rows(source), tree[OWN_TABLE])
    return replace(source.config, norm_eps=1e-6), tree


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


def test_a_table_whose_file_has_gone_is_named(tmp_path: Path) -> None:
    source = open_weights(write_gemma4_hf(tmp_path / "hf", "gemma4-e"))
    table = source.own_table
    (tmp_path / "hf" / "model.safetensors").unlink()
    assert table is not None
    with pytest.raises(ModelLoadError, match=f"{OWN_TABLE} cannot be read: .*No such file"):
        open_table(source, table)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 8),
        ("num_hidden_layers", 9),
        ("hidden_size", 65),
        ("head_dim", 24),
        ("intermediate_size", 100),
        ("hidden_size_per_layer_input", 16),
        ("num_key_value_heads", 2),
        ("global_head_dim", 16),
        ("num_experts", 8),
        ("num_kv_shared_layers", 10),
        ("num_kv_shared_layers", 6),
        ("num_kv_shared_layers", -1),
        ("layer_types", ["sliding_attention"] * 9),
        ("layer_types", ["chunked_attention"] * 10),
        ("layer_types", (["full_attention"] * 4 + ["sliding_attention"]) * 2),
        ("layer_types", (["sliding_attention"] * 4 + ["full_attention"]) + ["full_attention"] * 5),
        ("sliding_window", 0),
        ("rope_parameters", {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {}}),
        ("rope_parameters", {"full_attention": {}}),
        ("use_bidirectional_attention", "all"),
        ("hidden_activation", "silu"),
    ],
)
def test_a_config_of_other_sizes_or_kinds_is_refused(
    tmp_path: Path, field: str, value: Any
) -> None:
    path = write_gemma4_hf(tmp_path / "hf", "gemma4-e", more={field: value})
    with pytest.raises(ModelLoadError) as refused:
        check(open_weights(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.head_count", 8),
        ("attention.head_count_kv", 2),
        ("attention.key_length_swa", 32),
        ("feed_forward_length", 100),
        ("expert_count", 8),
        ("embedding_length_per_layer_input", 16),
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.factor", 8.0),
        ("attention.scale", 0.5),
        ("attn_logit_softcapping", 50.0),
        ("attention.key_length", 24),
        ("embedding_length", 65),
        ("block_count", 9),
        ("attention.shared_kv_layers", 10),
        ("attention.sliding_window_pattern", [True, False]),
    ],
)
def test_metadata_of_other_sizes_or_scales_is_refused(tmp_path: Path, key: str, value: Any) -> None:
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


@pytest.mark.parametrize("chosen", [0, 9, 100])
def test_more_experts_than_there_are_cannot_be_chosen(chosen: int, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        open_weights(write_gemma4_hf(tmp_path, "gemma4-moe", more={"top_k_experts": chosen}))
    metadata = {"gemma4.expert_used_count": chosen}
    with pytest.raises(ModelLoadError):
        open_weights(write_gemma4_gguf(tmp_path / "m.gguf", "gemma4-moe", metadata=metadata))


def test_values_beside_keys_that_are_values_are_not_used(tmp_path: Path) -> None:
    """transformers has no matrix for them."""
    with_values = write_gemma4_hf(tmp_path / "e", "gemma4-e", more={"attention_k_eq_v": True})
    layers = open_weights(with_values).config.layers
    assert {layer.keys_are_values for layer in layers if not layer.window} == {True, False}
    check(open_weights(with_values))
    without = write_gemma4_hf(tmp_path / "kv", "gemma4-kv", more={"attention_k_eq_v": False})
    with pytest.raises(ModelLoadError, match="no keys or no values"):
        open_weights(without)


def test_global_layers_turn_in_part_only_where_they_are_said_to(tmp_path: Path) -> None:
    def share(kind: str, factor: float) -> set[float]:
        rope = gemma4_config("gemma4-kv")["rope_parameters"]
        rope["full_attention"] |= {"rope_type": kind, "partial_rotary_factor": factor}
        path = write_gemma4_hf(tmp_path / f"{factor}", "gemma4-kv", more={"rope_parameters": rope})
        layers = open_weights(path).config.layers
        return {layer.rope_share for layer in layers if not layer.window}

    assert share("proportional", 0.5) == {0.5}
    assert share("default", 0.25) == {1.0}  # transformers' "default" does not heed the factor
    with pytest.raises(ModelLoadError):
        share("proportional", 4.0)


def test_tokens_that_are_never_sampled_are_found(tmp_path: Path) -> None:
    """The 12B's of images, without which it writes them into its text."""
    path = write_gemma4_hf(tmp_path, "gemma4-kv")
    write_gemma4_tokenizer(tmp_path, "gemma4-kv")
    (tmp_path / "generation_config.json").write_text('{"suppress_tokens": [301, 7, 999999]}')
    assert open_checkpoint(path).config.suppressed == (7, 301)
    metadata = {"tokenizer.ggml.suppress_tokens": [301, 7]}
    gguf = write_gemma4_gguf(tmp_path / "m.gguf", "gemma4-kv", metadata=metadata)
    assert open_checkpoint(gguf).config.suppressed == (7, 301)


def test_the_tokenizers_that_ollama_s_converter_writes(tmp_path: Path) -> None:
    """Its bytes are typed as text, and its scores are real; without merges -1000 says nothing."""
    pieces, _, types = gemma4_pieces(PRESETS["gemma4-kv"].vocab)
    theirs = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.token_type": [1 if kind == 6 else kind for kind in types],
        "tokenizer.ggml.scores": [-float(index) for index in range(len(pieces))],
    }
    path = write_gemma4_gguf(tmp_path / "ollama.gguf", "gemma4-kv", metadata=theirs)
    tokenizer = open_checkpoint(path).tokenizer
    assert tokenizer.decode(tokenizer.encode("a\n\nzé")) == "a\n\nzé"
    alike = theirs | {"tokenizer.ggml.scores": [-1000.0] * len(pieces)}
    path = write_gemma4_gguf(tmp_path / "none.gguf", "gemma4-kv", metadata=alike)
    with pytest.raises(ModelLoadError, match="neither scores nor merges"):
        open_checkpoint(path)


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
    [("user", "a"), ("system", "b"), ("user", "ab")],
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


@pytest.fixture(params=["gemma4-e", "gemma4-kv", "gemma4-all-experts"])
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
    """Its keys and values are float16; where experts are chosen, that may change the choice. A
    wrong norm, window or rope moves these log-probabilities, which spread over 12 units, by units.
    """
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
