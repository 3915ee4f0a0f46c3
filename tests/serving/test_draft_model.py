"""Which models may draft for which."""

from pathlib import Path

import pytest

from gemma_server.errors import ModelLoadError
from gemma_server.serving.loader import load_model
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import load_settings
from testing.embedding import NAMES, write_embedding_hf
from testing.gemma4 import write_gemma4_gguf
from testing.tiny import tiny_weights, write_gguf


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return write_gemma4_gguf(tmp_path / "large.gguf", "gemma4-kv")


def refusal(large: Path, small: Path, tmp_path: Path) -> str:
    """What the server says; it has not begun to compile by then."""
    settings = load_settings(
        model_checkpoint=large,
        draft_checkpoint=small,
        dtype="float32",
        context_length=32,
        cache_dir=tmp_path / "cache",
    )
    with pytest.raises(ModelLoadError) as refused:
        load_model(settings, ServableVersion("model"), lambda death: None)
    assert not (tmp_path / "cache" / "programs").exists()
    return str(refused.value)


def test_a_model_of_other_tokens_is_refused(large: Path, tmp_path: Path) -> None:
    small = write_gguf(tmp_path / "small.gguf", "gemma3", tiny_weights("gemma3"))
    said = refusal(large, small, tmp_path)
    assert f"--draft-checkpoint {small}: its tokens are not those of {large}" in said


def test_a_model_that_embeds_is_refused(large: Path, tmp_path: Path) -> None:
    small = write_embedding_hf(tmp_path / "embeds", NAMES[0])
    assert "embeddings" in refusal(large, small, tmp_path)


def test_a_path_without_a_model_is_named(large: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(large, tmp_path / "none", tmp_path)
