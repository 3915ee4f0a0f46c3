"""Models that were made of a Gemma, as their Hugging Face directories describe them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gemma_server.cli.main import main
from gemma_server.errors import ChatRefused, ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.text.chat import Message
from gemma_server.text.jinja_template import JinjaTemplate
from gemma_server.text.sentencepiece_model import model_from_pieces
from gemma_server.weights.architecture import family_of
from gemma_server.weights.open import open_weights
from gemma_server.weights.source import check
from testing.forward import Model, text_of
from testing.hugging_face import write_hf, write_hf_multimodal
from testing.models import oracle_logits, read_golden
from testing.oracle.gemma import PRESETS
from testing.quality import FAMILY_TOLERANCE
from testing.tiny import (
    load_flat,
    load_params,
    tiny_config,
    tiny_pieces,
    tiny_weights,
    write_gguf,
    write_tokenizer,
)

VAULT = "vaultgemma"


def write(path: Path, name: str, changes: dict[str, Any]) -> Path:
    """A tiny directory whose config.json is changed; None leaves a key out."""
    write_hf(path, name, tiny_weights(name))
    config = json.loads((path / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.slow
def test_vaultgemma_s_logits_are_the_library_s_and_the_oracle_s(tmp_path: Path) -> None:
    source = open_weights(write_hf(tmp_path / "hf", VAULT, tiny_weights(VAULT), shards=2))
    check(source)
    params = load_params(source, source.config)
    ids, logits = read_golden(VAULT)
    [got] = Model(VAULT, params).feed([0], [ids], [0])
    np.testing.assert_allclose(got, logits, rtol=0, atol=FAMILY_TOLERANCE)
    other = text_of(VAULT, seed=1)
    [got] = Model(VAULT, params).feed([0], [other], [0])
    np.testing.assert_allclose(got, oracle_logits(VAULT, other), rtol=0, atol=FAMILY_TOLERANCE)


@pytest.mark.slow
def test_vaultgemma_is_converted(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "hf", VAULT, tiny_weights(VAULT))
    write_tokenizer(path / "tokenizer.model", PRESETS[VAULT].vocab)
    done = CliRunner().invoke(main, ["convert", str(path), str(tmp_path / "converted")])
    assert done.exit_code == 0, done.output
    before, after = open_checkpoint(path), open_checkpoint(tmp_path / "converted")
    assert after.config == before.config
    assert family_of(after.config) == "vaultgemma"
    expected = load_flat(before.weights, before.config)
    for leaf, array in load_flat(after.weights, after.config).items():
        np.testing.assert_array_equal(array, expected[leaf], err_msg=leaf)


@pytest.mark.parametrize(
    ("types", "windows"),
    [
        (["full_attention"] * 4, [None] * 4),  # the released model
        (["sliding_attention"] + ["full_attention"] * 3, [8, None, None, None]),
        (None, [8, None, 8, None]),  # what transformers takes for it
    ],
)
def test_vaultgemma_s_layers_are_what_its_file_says(
    tmp_path: Path, types: list[str] | None, windows: list[int | None]
) -> None:
    config = open_weights(write(tmp_path / "hf", VAULT, {"layer_types": types})).config
    assert [layer.window for layer in config.layers] == windows
    assert (config.attention_softcap, config.final_softcap) == (4.0, 6.0)


def test_vaultgemma_takes_the_library_s_defaults(tmp_path: Path) -> None:
    left_out = ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
    config = open_weights(write(tmp_path / "hf", VAULT, dict.fromkeys(left_out))).config
    assert (config.attention_softcap, config.final_softcap) == (50.0, 30.0)
    assert config.query_scale == 256**-0.5


def test_a_vaultgemma_with_more_norms_or_in_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="norms are not those of vaultgemma"):
        open_weights(write(tmp_path / "more", "gemma2", {"model_type": VAULT}))
    gguf = write_gguf(
        tmp_path / "m.gguf", "gemma2", tiny_weights("gemma2"), {"general.architecture": VAULT}
    )
    with pytest.raises(ModelLoadError, match=r"llama\.cpp has no such model"):
        open_weights(gguf)


# What the releases' config.json have that the tiny models' have not: transformers wrote them at
# other times, and people save them again. (Sizes are the tiny models'.)
KINDS = (["sliding_attention"] * 5 + ["full_attention"]) * 2
BY_KIND = {
    "full_attention": {"factor": 8.0, "rope_theta": 1_000_000.0, "rope_type": "linear"},
    "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
}
UNSCALED = {
    "full_attention": {"rope_theta": 1_000_000.0, "rope_type": "default"},
    "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
}
OLD_ROPE: dict[str, Any] = dict.fromkeys(("rope_theta", "rope_scaling", "sliding_window_pattern"))
FUNCTION_GEMMA = {
    **OLD_ROPE,
    "_sliding_window_pattern": 6,
    "dtype": "bfloat16",
    "layer_types": KINDS[:8],
    "rope_local_base_freq": 10_000.0,
    "rope_parameters": UNSCALED,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
}
SHIELD_GEMMA = {"architectures": ["Gemma2ForCausalLM"], "sliding_window_size": 8}
CODE_GEMMA = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
RELATIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "FunctionGemma": ("gemma3-small", FUNCTION_GEMMA),
    "ShieldGemma": ("gemma2", SHIELD_GEMMA),
    "CodeGemma": ("gemma1-mha", CODE_GEMMA),
    "DataGemma and TxGemma": ("gemma2", {"cache_implementation": "hybrid"}),
    "MedGemma 27B, text alone": ("gemma3", {**FUNCTION_GEMMA, "rope_parameters": BY_KIND}),
}


def assert_alike(found: GemmaConfig, name: str) -> None:
    expected = tiny_config(name)
    for field in vars(expected):
        if field not in ("name", "vocab"):
            assert getattr(found, field) == pytest.approx(getattr(expected, field)), field


@pytest.mark.parametrize("relative", RELATIVES)
def test_a_relative_is_read_as_the_gemma_that_it_is(tmp_path: Path, relative: str) -> None:
    name, changes = RELATIVES[relative]
    source = open_weights(write(tmp_path / "hf", name, changes))
    check(source)
    assert_alike(source.config, name)


ROPES: dict[str, dict[str, Any]] = {
    "one for all": {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "by kind": {"rope_parameters": BY_KIND},
    "by kind, under the older name": {"rope_scaling": BY_KIND},
    "by kind, and bases apart": {
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {
            "full_attention": {"factor": 8.0, "rope_type": "linear"},
            "sliding_attention": {"rope_type": "default"},
        },
        "rope_theta": 1_000_000.0,
    },
    "both": {"rope_parameters": UNSCALED, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "a factor that is not heeded": {
        "rope_parameters": {
            **BY_KIND,
            "sliding_attention": {"factor": 8.0, "rope_theta": 10_000.0, "rope_type": "default"},
        }
    },
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_rope_may_be_said_in_every_form(tmp_path: Path, rope: str, prefix: str) -> None:
    """TranslateGemma and MedGemma, whose files also hold a vision tower."""
    path = write_hf_multimodal(tmp_path / "hf", "gemma3", tiny_weights("gemma3"), prefix=prefix)
    config = json.loads((path / "config.json").read_text())
    text = {key: value for key, value in config["text_config"].items() if "rope" not in key}
    config["text_config"] = text | ROPES[rope]
    (path / "config.json").write_text(json.dumps(config))
    source = open_weights(path)
    check(source)
    assert_alike(source.config, "gemma3")


@pytest.mark.parametrize(
    "rope",
    [
        {"full_attention": {"rope_type": "yarn", "factor": 8.0}},
        {"full_attention": 8.0},
        {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}},
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_other_ropes_by_kind_are_refused(tmp_path: Path, key: str, rope: Any) -> None:
    path = write(tmp_path / "hf", "gemma3", {**OLD_ROPE, key: rope})
    with pytest.raises(ModelLoadError, match=r"rope|factor"):
        open_weights(path)


FUNCTION_MARKERS = ["<start_function_call>", "<end_function_call>", "<start_function_response>"]
FUNCTION_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'developer' if message.role == 'system' else message.role }}\n"
    "{{ message.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n<start_function_call>{% endif %}"
)
# TranslateGemma's takes only messages that say from which language into which.
TRANSLATE_TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}"
    "{{ raise_exception('content must be a list') }}{% endif %}{% endfor %}"
)


def with_template(path: Path, template: str, eos: list[int]) -> Path:
    """FunctionGemma's vocabulary and files beside the weights."""
    write(path, "gemma3-small", FUNCTION_GEMMA)
    size = PRESETS["gemma3-small"].vocab
    pieces, scores, types = tiny_pieces(size - len(FUNCTION_MARKERS))
    types += [3] * len(FUNCTION_MARKERS)
    scores += [0.0] * len(FUNCTION_MARKERS)
    model = model_from_pieces([*pieces, *FUNCTION_MARKERS], scores, types)
    (path / "tokenizer.model").write_bytes(model)
    (path / "chat_template.jinja").write_text(template)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return path


def test_a_relative_s_template_and_ends_are_its_own(tmp_path: Path) -> None:
    call, _, response = range(PRESETS["gemma3-small"].vocab - 3, PRESETS["gemma3-small"].vocab)
    path = with_template(tmp_path / "hf", FUNCTION_TEMPLATE, [1, response])
    opened = open_checkpoint(path)
    assert isinstance(opened.chat, JinjaTemplate)
    ids = opened.chat.encode([Message("system", "a"), Message("user", "<start_function_call>")])
    assert ids[-1] == call
    assert ids.count(call) == 1  # what the user typed stays text
    assert {1, response, opened.tokenizer.end_of_turn_id} == opened.tokenizer.stop_ids


def test_a_template_that_takes_no_plain_text_says_so(tmp_path: Path) -> None:
    opened = open_checkpoint(with_template(tmp_path / "hf", TRANSLATE_TEMPLATE, [1]))
    with pytest.raises(ChatRefused, match="content must be a list"):
        opened.chat.encode([Message("user", "a")])


REASONS = {
    "an encoder beside": ["t5gemma", "t5gemma2", "t5gemma2_decoder"],
    "recurrent": ["recurrent_gemma"],
    "token by token": ["diffusion_gemma"],
    "an image first": ["paligemma"],
    "classifies images": ["shieldgemma2"],
    "layers are unlike": ["gemma3n", "gemma3n_text"],
    "drafts for another": ["gemma4_assistant", "gemma4_unified_assistant"],
    "it is no Gemma": ["llama"],
}


@pytest.mark.parametrize(
    ("kind", "reason"), [(kind, reason) for reason, kinds in REASONS.items() for kind in kinds]
)
def test_what_is_no_decoder_of_text_is_refused_with_the_reason(
    tmp_path: Path, kind: str, reason: str
) -> None:
    path = write(tmp_path / "hf", "gemma3-small", {"model_type": kind})
    with pytest.raises(ModelLoadError, match=rf"model_type '{kind}' is not served: .*{reason}"):
        open_weights(path)


@pytest.mark.parametrize("kind", ["gemma3n", "gemma4-assistant", "t5gemma"])
def test_a_gguf_of_these_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    weights = tiny_weights("gemma2")
    path = write_gguf(tmp_path / "m.gguf", "gemma2", weights, {"general.architecture": kind})
    with pytest.raises(ModelLoadError, match=rf"'{kind}' is not served: it(s layers)? .*"):
        open_weights(path)
