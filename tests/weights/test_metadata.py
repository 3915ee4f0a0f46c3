"""Metadata in every form that the converters of llama.cpp, Ollama and transformers have written."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.weights.gguf.gemma import GgufWeights
from gemma_server.weights.hugging_face.gemma import HuggingFaceWeights
from testing.hugging_face import write_hf
from testing.oracle.gemma import PRESETS
from testing.tiny import tiny_weights, write_gguf

NAME = "gemma3"
LAYERS = PRESETS[NAME].layers
PERIODIC = [window is not None for window in PRESETS[NAME].windows]
OTHER = [False, True, True, False, True, False, False, True]
PATTERN = "gemma3.attention.sliding_window_pattern"


def from_gguf(folder: Path, metadata: dict[str, Any], name: str = NAME) -> GgufWeights:
    return GgufWeights(write_gguf(folder / "model.gguf", name, tiny_weights(name), metadata))


def from_hf(folder: Path, changes: dict[str, Any]) -> HuggingFaceWeights:
    path = write_hf(folder / "hf", NAME, tiny_weights(NAME))
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))
    return HuggingFaceWeights(path)


def local(config: GemmaConfig) -> list[bool]:
    return [layer.window is not None for layer in config.layers]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (None, PERIODIC),  # llama.cpp's converter in 2025
        (6, PERIODIC),
        (2, [True, False] * 4),
        (PERIODIC, PERIODIC),  # Ollama's converter, and newer ones of llama.cpp
        (list(map(int, PERIODIC)), PERIODIC),
        (OTHER, OTHER),
    ],
)
def test_local_layers_are_a_period_or_flags(
    tmp_path: Path, pattern: Any, expected: list[bool]
) -> None:
    config = from_gguf(tmp_path, {PATTERN: pattern}).config
    assert local(config) == expected
    bases = {(layer.window, layer.rope_base, layer.rope_factor) for layer in config.layers}
    assert bases == {(8, 1e4, 1.0), (None, 1e6, 8.0)}


@pytest.mark.parametrize("flags", [[True] * (LAYERS - 1), [True] * (LAYERS + 1), [2] * LAYERS])
def test_flags_that_do_not_fit_are_refused_by_name(tmp_path: Path, flags: list[Any]) -> None:
    with pytest.raises(ModelLoadError, match="sliding_window_pattern"):
        from_gguf(tmp_path, {PATTERN: flags})


def test_layer_types_need_no_period(tmp_path: Path) -> None:
    types = ["sliding_attention" if flag else "full_attention" for flag in OTHER]
    assert local(from_hf(tmp_path, {"layer_types": types}).config) == OTHER


def test_a_number_may_be_said_for_each_layer(tmp_path: Path) -> None:
    names = ("head_count", "head_count_kv")
    counts = {
        f"gemma3.attention.{name}": [getattr(PRESETS[NAME], attribute)] * LAYERS
        for name, attribute in zip(names, ("heads", "kv_heads"), strict=True)
    }
    hidden = {"gemma3.feed_forward_length": [PRESETS[NAME].hidden] * LAYERS}
    assert from_gguf(tmp_path, counts | hidden).config == from_gguf(tmp_path, {}).config
    counts["gemma3.attention.head_count_kv"][3] = 1
    with pytest.raises(ModelLoadError, match=r"head_count_kv is .*: only the same for all layers"):
        from_gguf(tmp_path, counts)


def test_rotary_bases_have_several_names(tmp_path: Path) -> None:
    llama = {"gemma3.rope.freq_base": 3e6, "gemma3.rope.freq_base_swa": 2e4}
    none = dict.fromkeys(llama)
    ollama = {"gemma3.rope.global.freq_base": 3e6, "gemma3.rope.local.freq_base": 2e4}
    found = from_gguf(tmp_path, llama).config
    assert {layer.rope_base for layer in found.layers} == {3e6, 2e4}
    assert from_gguf(tmp_path, none | ollama).config == found
    older = {"gemma3.rope.scaling.factor": None, "gemma3.rope.scale_linear": 4.0}
    assert {layer.rope_factor for layer in from_gguf(tmp_path, older).config.layers} == {1.0, 4.0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gemma3.attention.value_length", 8),
        ("gemma3.rope.dimension_count", 8),
        ("gemma3.attention.causal", False),
        ("gemma3.pooling_type", 1),
        ("gemma3.expert_count", 4),
        ("gemma3.rope.scaling.type", "yarn"),
        ("tokenizer.ggml.eos_token_id", "one"),
        ("tokenizer.ggml.eos_token_ids", ["one"]),
        ("tokenizer.chat_template", 7),
    ],
)
def test_another_model_s_values_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelLoadError, match=key):
        from_gguf(tmp_path, {key: value})


def test_what_is_always_so_may_be_said(tmp_path: Path) -> None:
    said = {
        "gemma3.attention.value_length": PRESETS[NAME].head_dim,
        "gemma3.rope.dimension_count": PRESETS[NAME].head_dim,
        "gemma3.attention.causal": True,
    }
    assert from_gguf(tmp_path, said).config == from_gguf(tmp_path, {}).config


def test_stop_ids_are_gathered_from_every_key(tmp_path: Path) -> None:
    ends = ("eos_token_id", "eot_token_id", "eom_token_id")
    said: dict[str, Any] = {f"tokenizer.ggml.{name}": 7 + i for i, name in enumerate(ends)}
    said["tokenizer.ggml.eos_token_ids"] = [7, 20]
    assert from_gguf(tmp_path, said).stop_ids == {7, 8, 9, 20}
    assert from_gguf(tmp_path, {}).stop_ids == frozenset()


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(("said", "expected"), [(7, {7}), ([7, 9], {7, 9}), (None, set())])
def test_stop_ids_are_read_from_a_directory(
    tmp_path: Path, file: str, said: Any, expected: set[int]
) -> None:
    path = write_hf(tmp_path / "hf", NAME, tiny_weights(NAME))
    there = json.loads((path / file).read_text()) if (path / file).exists() else {}
    (path / file).write_text(json.dumps(there | {"eos_token_id": said}))
    own = HuggingFaceWeights(path).stop_ids
    assert own - {1} == expected  # the eos of the config that is written here
    (path / file).write_text(json.dumps(there | {"eos_token_id": "</s>"}))
    with pytest.raises(ModelLoadError, match=rf"{file}: eos_token_id"):
        HuggingFaceWeights(path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", "the template"),
        ("tokenizer_config.json", json.dumps({"chat_template": "the template"})),
        ("chat_template.json", json.dumps({"chat_template": "the template"})),
        (
            "tokenizer_config.json",
            json.dumps(
                {
                    "chat_template": [
                        {"name": "rag", "template": "another"},
                        {"name": "default", "template": "the template"},
                    ]
                }
            ),
        ),
    ],
)
def test_a_chat_template_is_found_where_transformers_keeps_it(
    tmp_path: Path, file: str, content: str
) -> None:
    path = write_hf(tmp_path / "hf", NAME, tiny_weights(NAME))
    assert HuggingFaceWeights(path).chat_template is None
    (path / file).write_text(content)
    assert HuggingFaceWeights(path).chat_template == "the template"
