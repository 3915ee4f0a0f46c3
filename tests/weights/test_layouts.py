"""Every layout that a Gemma comes in gives the same parameter tree from the same weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.weights.hugging_face.container import SafetensorsDir
from gemma_server.weights.hugging_face.gemma import HuggingFaceWeights
from gemma_server.weights.open import open_weights
from gemma_server.weights.source import check
from testing import layouts
from testing.hugging_face import EXTRA_ROWS, write_hf, write_hf_multimodal
from testing.oracle.gemma import PRESETS
from testing.quality import GOLDENS
from testing.tiny import (
    GGUF_NAMES,
    Weights,
    load_flat,
    tiny_config,
    tiny_preset,
    tiny_weights,
    write_gguf,
    write_orbax,
)

pytestmark = pytest.mark.slow

Flat = dict[str, npt.NDArray[Any]]
Write = Callable[[Path, str, Weights], Path]


def _tree(path: Path, config: GemmaConfig, dtype: Any = np.float32) -> Flat:
    return load_flat(open_weights(path), config, dtype)


@pytest.fixture(scope="module", params=PRESETS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each preset, its weights, and the tree of Kaggle's own layout."""
    name: str = request.param
    weights = tiny_weights(name)
    path = write_orbax(tmp_path_factory.mktemp(name) / "flat", weights)
    return name, weights, _tree(path, tiny_config(name))


def _period(name: str) -> int:
    return tiny_preset(name).global_every


LAYOUTS: dict[str, Write] = {
    "orbax nested": lambda path, name, w: write_orbax(path, layouts.nested(w)),
    "orbax stacked": lambda path, name, w: write_orbax(path, layouts.stacked(w, _period(name))),
    "orbax training dump": lambda path, name, w: write_orbax(path, layouts.training(w)),
    "orbax with a prefix": lambda path, name, w: write_orbax(path, layouts.prefixed(w)),
    "orbax with vision": lambda path, name, w: write_orbax(path, layouts.with_vision(w)),
    "orbax in a directory above": lambda path, name, w: (
        write_orbax(path / "default", layouts.training(w)).parent
    ),
    "orbax, a directory each": lambda path, name, w: write_orbax(path, w, use_ocdbt=False),
    "orbax zarr 3": lambda path, name, w: write_orbax(path, layouts.nested(w), use_zarr3=True),
    "hugging face": lambda path, name, w: write_hf(path, name, w),
    "hugging face, sharded": lambda path, name, w: write_hf(path, name, w, shards=3),
    "hugging face, no prefix": lambda path, name, w: write_hf(path, name, w, prefix=""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_bits(case: Any, tmp_path: Path, layout: str) -> None:
    name, weights, expected = case
    found = _tree(LAYOUTS[layout](tmp_path / "checkpoint", name, weights), tiny_config(name))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@pytest.mark.parametrize("write", [LAYOUTS["orbax nested"], LAYOUTS["hugging face"]])
def test_a_checkpoint_may_be_named_by_any_path(tmp_path: Path, write: Write) -> None:
    """Relative, through a link, and with signs in it that mean something elsewhere."""
    name = "gemma3-small"
    path = write(tmp_path / "a b%20?#é", name, tiny_weights(name))
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to(path)
    for spelled in (tmp_path / "below" / ".." / path.name, tmp_path / "link"):
        assert len(open_weights(spelled).config.layers) == PRESETS[name].layers


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
@pytest.mark.parametrize("name", ["gemma3", "gemma3-small"])
def test_the_text_part_of_a_model_that_sees_gives_the_same_bits(
    tmp_path: Path, name: str, prefix: str
) -> None:
    """Its embedding has padding rows more, which are cut to the tokenizer's vocabulary."""
    weights = tiny_weights(name)
    expected = _tree(write_orbax(tmp_path / "flat", weights), tiny_config(name))
    path = write_hf_multimodal(tmp_path / "hf", name, weights, shards=2, prefix=prefix)
    assert open_weights(path).config.vocab == PRESETS[name].vocab + EXTRA_ROWS
    for leaf, array in _tree(path, tiny_config(name)).items():
        np.testing.assert_array_equal(array, expected[leaf], err_msg=leaf)


@pytest.mark.parametrize("case", GGUF_NAMES, indirect=True)
def test_gguf_gives_the_same_bits(case: Any, tmp_path: Path) -> None:
    name, weights, expected = case
    found = _tree(write_gguf(tmp_path / "model.gguf", name, weights), tiny_config(name))
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16])
def test_half_floats_are_widened_exactly(case: Any, tmp_path: Path, stored: Any) -> None:
    """From 16 to 32 bits nothing is lost; from bfloat16 to bfloat16 neither."""
    name, weights, _ = case
    halves: Any = {
        path: {leaf: array.astype(stored) for leaf, array in leaves.items()}
        for path, leaves in weights.items()
    }
    wide: Any = {
        path: {leaf: array.astype(np.float32) for leaf, array in leaves.items()}
        for path, leaves in halves.items()
    }
    config = tiny_config(name)
    expected = _tree(write_orbax(tmp_path / "wide", wide), config)
    sources = [
        write_orbax(tmp_path / "halves", halves),
        write_hf(tmp_path / "hf", name, weights, dtype=stored),
    ]
    for path in sources:
        for leaf, array in _tree(path, config).items():
            np.testing.assert_array_equal(array, expected[leaf], err_msg=leaf)
        for leaf, array in _tree(path, config, ml_dtypes.bfloat16).items():
            assert array.dtype == (np.float32 if leaf.endswith("/scale") else ml_dtypes.bfloat16)
            rounded = expected[leaf].astype(array.dtype)
            np.testing.assert_array_equal(array, rounded, err_msg=leaf)


@pytest.mark.parametrize("name", PRESETS)
def test_the_architecture_is_read_from_a_hugging_face_config(tmp_path: Path, name: str) -> None:
    """Every number that no tensor shows: windows, caps, scales, rotary bases and factors."""
    config = HuggingFaceWeights(write_hf(tmp_path / "hf", name, tiny_weights(name))).config
    expected = tiny_config(name)
    for field in vars(expected):
        if field != "name":
            assert getattr(config, field) == pytest.approx(getattr(expected, field)), field


# What `save_pretrained` of today's transformers wrote: scripts/goldens.
SAVED = json.loads((GOLDENS / "hf_layouts.json").read_text())


@pytest.mark.parametrize("saved", SAVED)
def test_what_transformers_saves_today_is_read(tmp_path: Path, saved: str) -> None:
    """Its config.json and its tensors' names; rotary parameters moved between its versions."""
    name, tensors = saved.replace("-multimodal", ""), SAVED[saved]["tensors"]
    [table] = [name for name in tensors if name.endswith("embed_tokens.weight")]
    write = write_hf if saved == name else write_hf_multimodal
    prefix = table.removesuffix("embed_tokens.weight")
    path = write(tmp_path / "hf", name, tiny_weights(name), prefix=prefix)
    (path / "config.json").write_text(json.dumps(SAVED[saved]["config"]))

    weights = HuggingFaceWeights(path)
    for text in weights.tensors:
        assert list(SafetensorsDir(path).tensors[text].shape) == tensors[text], text
    expected = tiny_config(name)
    for field in vars(expected):
        if field not in ("name", "vocab"):
            assert getattr(weights.config, field) == pytest.approx(getattr(expected, field)), field
    assert len(_tree(path, expected)) > 10


def test_strays_are_refused_by_name(tmp_path: Path) -> None:
    """A bias or an adapter that were left out would change the answers in silence."""
    weights: Any = tiny_weights("gemma2")
    weights["transformer/layer_1/attn/q_einsum_lora"] = {"a": np.ones((4, 4), np.float32)}
    with pytest.raises(ModelLoadError, match="no place for the tensors layer_1/attn/q_einsum_lora"):
        check(open_weights(write_orbax(tmp_path / "orbax", weights)))
