"""Models that embed texts, in the files that people have: one from all, and what is refused."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.model.presets import EMBEDDERS
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.weights.gguf.gemma import GgufWeights
from gemma_server.weights.open import open_weights
from gemma_server.weights.source import WeightSource, check
from testing.embedding import NAMES, read_golden, write_embedding_gguf, write_embedding_hf
from testing.tiny import load_flat


def _tree(source: WeightSource) -> tuple[GemmaConfig, dict[str, Any]]:
    check(source)
    return replace(source.config, norm_eps=1e-6), load_flat(source, source.config)


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_model(name: str, tmp_path: Path) -> None:
    config, tree = _tree(open_weights(write_embedding_hf(tmp_path / "hf", name)))
    found, same = _tree(GgufWeights(write_embedding_gguf(tmp_path / "model.gguf", name)))
    assert found == config
    assert same.keys() == tree.keys()
    for path, array in tree.items():
        np.testing.assert_array_equal(same[path], array, err_msg=path)
    assert config.name.startswith("embeddinggemma-")


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_comes_with_it(name: str, tmp_path: Path) -> None:
    of_gguf = open_checkpoint(write_embedding_gguf(tmp_path / "model.gguf", name)).tokenizer
    of_hf = open_checkpoint(write_embedding_hf(tmp_path / "hf", name)).tokenizer
    assert of_gguf.encode("a\nab é") == of_hf.encode("a\nab é")
    assert of_gguf.eos_id == of_hf.eos_id == 1


def test_the_released_models_have_the_numbers_of_their_cards() -> None:
    first, second = (row.config() for row in EMBEDDERS)
    assert round(first.parameters / 1e6) == 308
    assert round(second.parameters / 1e6) == 271
    assert (first.embedding_width, second.embedding_width) == (768, 768)
    assert {layer.window for layer in first.layers} == {257, None}
    assert {layer.window for layer in second.layers} == {513, None}
    assert [index for index, layer in enumerate(second.layers) if not layer.window] == [
        5,
        11,
        17,
        23,
    ]


@pytest.mark.parametrize("form", ["GGUF", "Hugging Face"])
def test_without_its_dense_layers_it_loads_with_a_warning(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if form == "GGUF":
        path = write_embedding_gguf(tmp_path / "m.gguf", "embedding", dense=False)
    else:
        path = write_embedding_hf(tmp_path / "m", "embedding", dense=False)
    with caplog.at_level(logging.WARNING):
        source = open_weights(path)
        check(source)
    assert "no dense layers" in caplog.text
    assert "cannot be compared" in caplog.text
    assert source.config.embedding_width == source.config.width
    caplog.clear()
    open_weights(write_embedding_hf(tmp_path / "second", "embedding2", dense=False))
    assert not caplog.records  # the second's is among its other weights


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_embedding_hf(tmp_path / "hf", "embedding")


def _rewrite(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("1_Pooling", {"pooling_mode_cls_token": True}, "only the mean"),
        ("1_Pooling", {"pooling_mode": "lasttoken"}, "only the mean"),
        ("2_Dense", {"bias": True}, "a bias or an activation"),
        ("3_Dense", {"activation_function": "torch.nn.modules.activation.Tanh"}, "an activation"),
    ],
)
def test_other_modules_are_refused(
    directory: Path, file: str, fields: dict[str, Any], said: str
) -> None:
    _rewrite(directory / file / "config.json", **fields)
    with pytest.raises(ModelLoadError, match=said):
        open_weights(directory)


@pytest.mark.parametrize(
    "modules",
    [
        {},
        [],
        "text",
        [{"type": "Transformer"}],
        [{"type": "a.Transformer", "path": ""}],
        [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "../1_Pooling"}],
        [{"type": "a.Transformer", "path": ""}, {"type": "a.LSTM", "path": "1_Pooling"}],
        [
            {"type": "a.Transformer", "path": ""},
            {"type": "a.Pooling", "path": "1_Pooling"},
            {"type": "a.Normalize", "path": "4_Normalize"},
            {"type": "a.Dense", "path": "2_Dense"},
        ],
    ],
)
def test_other_lists_of_modules_are_refused(directory: Path, modules: Any) -> None:
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelLoadError, match=r"modules\.json"):
        open_weights(directory)


def test_a_module_whose_files_are_missing_or_others_is_refused(directory: Path) -> None:
    folder = directory / "3_Dense"
    shutil.copy(directory / "2_Dense" / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match="the dense layer 1"):
        check(open_weights(directory))
    shutil.copy(directory / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match="not one linear"):
        open_weights(directory)
    shutil.rmtree(folder)
    with pytest.raises(ModelLoadError, match="3_Dense"):
        open_weights(directory)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_types", ["chunked_attention"] * 6),
        ("num_attention_heads", 8),
        ("hidden_size_per_layer_input", 16),
        ("embedding_dim", 768),
        ("head_dim", 32),
        ("sliding_window", 0),
        ("rope_parameters", {"full_attention": {"rope_type": "proportional"}}),
        ("rope_parameters", {"full_attention": 3}),
        ("hidden_activation", "silu"),
        ("attention_bias", True),
        ("quantization_config", {}),
    ],
)
def test_a_second_s_config_of_other_sizes_or_kinds_is_refused(
    tmp_path: Path, field: str, value: Any
) -> None:
    path = write_embedding_hf(tmp_path, "embedding2")
    config = json.loads((path / "config.json").read_text())
    _rewrite(path / "config.json", text_config=config["text_config"] | {field: value})
    with pytest.raises(ModelLoadError) as refused:
        check(open_weights(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("embedding", "attention.causal", True),
        ("embedding", "pooling_type", 2),
        ("embedding", "attention.sliding_window", 0),
        ("embedding2", "attention.causal", True),
        ("embedding2", "pooling_type", 3),
        ("embedding2", "embedding_length_out", 768),
        ("embedding2", "embedding_length_per_layer_input", 512),
        ("embedding2", "attention.shared_kv_layers", 2),
        ("embedding2", "attention.key_length", 24),
        ("embedding2", "attention.sliding_window_pattern", [True, False]),
        ("embedding2", "rope.scaling.type", "yarn"),
        ("embedding2", "final_logit_softcapping", 30.0),
    ],
)
def test_metadata_of_another_model_is_refused(
    tmp_path: Path, name: str, key: str, value: Any
) -> None:
    architecture = {"embedding": "gemma-embedding", "embedding2": "gemma-embedding2"}[name]
    metadata = {f"{architecture}.{key}": value}
    path = write_embedding_gguf(tmp_path / "m.gguf", name, metadata=metadata)
    with pytest.raises(ModelLoadError, match=key.rpartition(".")[2]):
        check(open_weights(path))


def test_a_gemma_3_that_says_nothing_of_both_ways_stays_one_that_writes(directory: Path) -> None:
    _rewrite(directory / "config.json", use_bidirectional_attention=False)
    assert not open_weights(directory).config.bidirectional


def test_what_a_span_is_follows_from_the_file(tmp_path: Path) -> None:
    """transformers halves the first's, and takes the second's as the reach to each side."""
    first = write_embedding_hf(tmp_path / "1", "embedding", more={"sliding_window": 512})
    assert {layer.window for layer in open_weights(first).config.layers} == {257, None}
    metadata = {"gemma-embedding.attention.sliding_window": None}
    gguf = write_embedding_gguf(tmp_path / "m.gguf", "embedding", metadata=metadata)
    assert {layer.window for layer in open_weights(gguf).config.layers} == {257, None}


@pytest.fixture(params=NAMES)
def llama(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    """A model's name, and llama.cpp with its GGUF file."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(write_embedding_gguf(tmp_path / "m.gguf", request.param))
    params.n_gpu_layers, params.n_parallel, params.n_ctx = 0, 1, 512
    params.n_batch = params.n_ubatch = 512
    params.fit_params, params.embedding = False, True
    params.cache_ram_mib = 0
    return request.param, xllamacpp.Server(params)


def test_llama_cpp_agrees_on_the_same_file(llama: tuple[str, Any]) -> None:
    """Its attention has float16. A window one token wider moves a vector by 0.1 or more."""
    name, server = llama
    for ids, vector in read_golden(name):
        answer = server.handle_embeddings({"input": ids, "encoding_format": "float"})
        found = np.array(answer["data"][0]["embedding"])
        assert np.abs(found - vector).max() < 0.005
        assert found @ vector > 0.9999
