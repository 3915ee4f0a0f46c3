"""Gemma 4 in DeepMind's own files: the same model as from the others, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gemma_server.cli.main import main
from gemma_server.errors import ModelLoadError
from gemma_server.model import presets
from gemma_server.model.presets import RELEASED, Shape, preset_for
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.weights.hugging_face.gemma import HuggingFaceWeights
from gemma_server.weights.open import open_weights
from gemma_server.weights.orbax.gemma import OrbaxWeights
from gemma_server.weights.source import OWN_TABLE, check
from testing import layouts
from testing.gemma4 import write_gemma4_hf, write_gemma4_tokenizer
from testing.gemma4_orbax import gemma4_flat, gemma4_preset
from testing.oracle.gemma4 import PRESETS
from testing.tiny import Weights, load_flat, stored_rows, write_orbax

NAMES = ["gemma4-e", "gemma4-kv", "gemma4-moe"]


@pytest.fixture(autouse=True)
def tiny_ones_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files do not say what no tensor shows: a size has to be known."""
    monkeypatch.setattr(presets, "RELEASED", (*RELEASED, *map(gemma4_preset, NAMES)))


def with_towers(weights: Weights) -> Any:
    """The flat tree of a model that also sees and hears."""
    one = np.ones((4, 4), np.float32)
    return {
        **weights,
        "PatchInputVariablePoolingEncoder_0/_model/vit/entry": {"w": one},
        "AudioEncoder/encoder/feature": {"w": one},
        "transformer/embedder/mm_input_projection": {"w": one},
        "transformer/embedder/audio_input_projection": {"w": one},
    }


def nested_with_towers(weights: Weights) -> Any:
    one = {"w": np.ones((4, 4), np.float32)}
    tree = layouts.nested(weights)
    return {**tree, "vision_encoder": {"entry": one}, "audio_encoder": {"conformer": one}}


LAYOUTS: dict[str, Callable[[Weights], Any]] = {
    "flat": lambda weights: weights,
    "nested": layouts.nested,
    "stacked": lambda weights: layouts.stacked(weights, 6),
    "training dump": layouts.training,
    "flat with towers": with_towers,
    "nested with towers": nested_with_towers,
}


# Layers of two widths cannot be stacked.
CASES = [
    (name, layout)
    for name in NAMES
    for layout in LAYOUTS
    if layout != "stacked" or not PRESETS[name].sharing_hidden
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_every_layout_gives_the_model_of_the_other_formats(
    name: str, layout: str, tmp_path: Path
) -> None:
    expected = HuggingFaceWeights(write_gemma4_hf(tmp_path / "hf", name))
    found = open_weights(write_orbax(tmp_path / "orbax", LAYOUTS[layout](gemma4_flat(name))))
    assert isinstance(found, OrbaxWeights)
    check(found)
    assert found.config == expected.config
    leaves = load_flat(found, found.config)
    for path, array in load_flat(expected, expected.config).items():
        np.testing.assert_array_equal(leaves[path], array, err_msg=path)
    if OWN_TABLE in leaves:
        np.testing.assert_array_equal(stored_rows(found), leaves[OWN_TABLE])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_converted(name: str, tmp_path: Path) -> None:
    path = write_orbax(tmp_path / "orbax", gemma4_flat(name))
    write_gemma4_tokenizer(tmp_path, name)
    done = CliRunner().invoke(main, ["convert", str(path), str(tmp_path / "converted")])
    assert done.exit_code == 0, done.output
    before, after = open_checkpoint(path), open_checkpoint(tmp_path / "converted")
    assert after.config == before.config
    expected = load_flat(before.weights, before.config)
    for leaf, array in load_flat(after.weights, after.config).items():
        np.testing.assert_array_equal(array, expected[leaf], err_msg=leaf)
    if OWN_TABLE in expected:
        np.testing.assert_array_equal(stored_rows(after.weights), expected[OWN_TABLE])


def test_padding_rows_of_both_tables_are_left_out(tmp_path: Path) -> None:
    name, rows = "gemma4-e", PRESETS["gemma4-e"].vocab - 5
    weights = OrbaxWeights(write_orbax(tmp_path / "orbax", gemma4_flat(name)))
    leaves = load_flat(weights, replace(weights.config, vocab=rows))
    whole = load_flat(weights, weights.config)
    for table in ("embedder/embedding", "embedder/per_layer_embedding"):
        np.testing.assert_array_equal(leaves[table], whole[table][:rows])


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("gemma4-e", "layer_3/attn/kv_einsum"),
        ("gemma4-e", "layer_9/attn/query_norm"),
        ("gemma4-e", "layer_7/per_layer_projection"),
        ("gemma4-e", "embedder/per_layer_projection_norm"),
        ("gemma4-e", "layer_4"),
        ("gemma4-kv", "layer_5/attn/k_einsum"),
        ("gemma4-moe", "layer_2/mlp/router_logits"),
        ("gemma4-moe", "layer_2/mlp2/linear"),
        ("gemma4-moe", "layer_2/post_ffw1_norm"),
    ],
)
def test_a_missing_array_is_named(name: str, missing: str, tmp_path: Path) -> None:
    weights = gemma4_flat(name)
    del weights[f"transformer/{missing}"]
    path = write_orbax(tmp_path / "orbax", weights)
    with pytest.raises(ModelLoadError, match=rf"no tensor '{missing}/\w+' \(for "):
        check(open_weights(path))


@pytest.mark.parametrize(
    ("name", "path", "shape"),
    [
        ("gemma4-e", "layer_4/attn/kv_einsum", (2, 1, 64, 16)),  # a global layer's as a local one's
        ("gemma4-e", "layer_6/mlp/linear", (96, 64)),
        ("gemma4-e", "layer_1/per_layer_input_gate", (64, 9)),
        ("gemma4-kv", "layer_5/attn/k_einsum", (2, 48, 32)),
        ("gemma4-moe", "layer_1/mlp/gating_einsum", (4, 2, 24, 48)),
        ("gemma4-moe", "layer_1/mlp/linear", (8, 48, 24)),
    ],
)
def test_an_array_of_another_shape_is_named(
    name: str, path: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    weights = gemma4_flat(name)
    weights[f"transformer/{path}"]["w"] = np.ones(shape, np.float32)
    with pytest.raises(ModelLoadError, match=rf"made of .*{path}/w .* but gemma-4-\w+ needs"):
        check(open_weights(write_orbax(tmp_path / "orbax", weights)))


def test_strays_and_unknown_sizes_are_refused(tmp_path: Path) -> None:
    weights = gemma4_flat("gemma4-kv")
    stray = {"transformer/layer_1/attn/lora": {"a": np.ones((4, 4), np.float32)}}
    path = write_orbax(tmp_path / "stray", weights | stray)
    with pytest.raises(ModelLoadError, match="no place for the tensors layer_1/attn/lora/a"):
        check(open_weights(path))
    shorter = {path: leaves for path, leaves in weights.items() if "/layer_5" not in path}
    with pytest.raises(ModelLoadError, match="no Gemma 4 of these sizes is known"):
        open_weights(write_orbax(tmp_path / "shorter", shorter))


@pytest.mark.parametrize("row", [row for row in RELEASED if row.output_scale])
def test_a_released_size_is_told_by_its_first_layer(row: presets.Preset) -> None:
    sizes = (row.layers, row.width, row.heads, row.kv_heads, row.head_dim, row.hidden)
    assert preset_for(Shape(*sizes, row.vocab, True, True, output_scale=True)) == row
