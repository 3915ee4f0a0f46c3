"""A checkpoint that embeds texts, from its files to vectors, and what the commands make of it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gemma_server.cli.convert import convert
from gemma_server.cli.inspect import describe
from gemma_server.cli.main import main
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.serving.loader import load_model
from gemma_server.serving.model import EmbeddingModel
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import load_settings
from testing.embedding import NAMES, TOLERANCE, oracle_embedding, write_embedding_hf

TEXT = "Longer than a window: 012345"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of compiled programs, which a converted checkpoint shares with its original."""
    return tmp_path_factory.mktemp("cache")


MODELS = [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name: str = request.param
    return write_embedding_hf(tmp_path_factory.mktemp("hf") / name, name)


def load(path: Path, cache: Path, dtype: str = "auto", length: int = 32) -> EmbeddingModel:
    settings = load_settings(
        model_checkpoint=path, cache_dir=cache, context_length=length, dtype=dtype, slots=1
    )
    deaths = list[BaseException]()
    loaded = load_model(settings, ServableVersion("model"), deaths.append)
    assert isinstance(loaded, EmbeddingModel)
    assert not deaths
    return loaded


def embed(loaded: EmbeddingModel, text: str) -> list[float]:
    request = loaded.engine.submit([tuple(loaded.encode(text))])
    assert request.wait(60)
    return request.vectors[0].tolist()


@pytest.fixture(scope="module")
def loaded(checkpoint: Path, cache: Path) -> Iterator[EmbeddingModel]:
    loaded = load(checkpoint, cache)
    yield loaded
    loaded.engine.stop()


def test_it_loads_in_float32_and_agrees_with_the_equations(
    loaded: EmbeddingModel, checkpoint: Path
) -> None:
    ids = loaded.encode(TEXT)
    assert (ids[0], ids[-1]) == (loaded.tokenizer.bos_id, loaded.tokenizer.eos_id)
    assert len(ids) == 30
    expected = oracle_embedding(checkpoint.name, ids)
    np.testing.assert_allclose(embed(loaded, TEXT), expected, rtol=0, atol=TOLERANCE)
    assert loaded.width == len(expected)
    assert (
        loaded.info.family
        == {
            "embedding": "gemma-embedding",
            "embedding2": "gemma-embedding2",
        }[checkpoint.name]
    )
    assert loaded.weight_bytes == 4 * loaded.info.parameters


def test_nothing_compiles_once_it_is_ready(loaded: EmbeddingModel) -> None:
    before = loaded.compilations.programs
    for length in (3, 20, 32):
        embed(loaded, "x" * (length - 2))
    assert loaded.compilations.programs == before


def test_a_converted_checkpoint_gives_the_same_bits(
    loaded: EmbeddingModel, checkpoint: Path, cache: Path, tmp_path: Path
) -> None:
    target = tmp_path / "converted"
    opened = open_checkpoint(checkpoint)
    convert(opened, target, "float32", lambda done, total: None, lambda stage: None)
    converted = load(target, cache)
    assert embed(converted, TEXT) == embed(loaded, TEXT)
    converted.engine.stop()


def test_inspect_says_what_it_makes(checkpoint: Path) -> None:
    said = describe(open_checkpoint(checkpoint))
    assert "embeddings of" in said
    assert "to each side" in said
    assert "cache takes" not in said


def test_generate_refuses_it(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODEL_CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("GEMMA_CACHE_DIR", str(cache))
    flags = ["--context-length", "32"]
    result = CliRunner().invoke(main, ["generate", "a", *flags])
    assert result.exit_code == 2, result.output
    assert "makes embeddings, it does not generate" in result.output


@pytest.mark.slow
def test_int8_keeps_the_direction(cache: Path, tmp_path: Path) -> None:
    loaded = load(write_embedding_hf(tmp_path / "hf", "embedding"), cache, "int8", length=16)
    found = np.array(embed(loaded, "in eight bits"))
    assert found @ oracle_embedding("embedding", loaded.encode("in eight bits")) > 0.99
    loaded.engine.stop()
