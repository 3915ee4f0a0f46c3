"""The packaged Gemma 3 270M: its file and its tokenizer, opened once in each process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gemma_server.settings import default_cache_dir
from gemma_server.text.sentencepiece_model import model_from_pieces
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.weights.demo import demo_checkpoint
from gemma_server.weights.gguf.gemma import GgufWeights
from testing.real import Pieces, RealModel, load_real_model


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return demo_checkpoint(default_cache_dir())


@pytest.fixture(scope="session")
def real() -> Iterator[RealModel]:
    """The model as it is served by default: on a CPU with 8-bit weights."""
    model = load_real_model()
    yield model
    model.engine.stop()


@pytest.fixture(scope="session")
def pieces(checkpoint: Path) -> Pieces:
    return GgufWeights(checkpoint).tokenizer_pieces


@pytest.fixture(scope="session")
def tokenizer(pieces: Pieces) -> Tokenizer:
    return Tokenizer(model_from_pieces(*pieces))
