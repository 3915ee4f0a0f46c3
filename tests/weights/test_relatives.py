"""Models that were made of a Gemma, as their Hugging Face directories describe them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gemma_server.cli.main import main
from gemma_server.errors import ModelLoadError
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.weights.architecture import family_of
from gemma_server.weights.open import open_weights
from gemma_server.weights.source import check
from testing.forward import Model, text_of
from testing.hugging_face import write_hf
from testing.models import oracle_logits, read_golden
from testing.oracle.gemma import PRESETS
from testing.quality import FAMILY_TOLERANCE
from testing.tiny import load_flat, load_params, tiny_weights, write_gguf, write_tokenizer

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
