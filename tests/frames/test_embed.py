"""Embeddings over frames, on a model without weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gemma_server.engine.embedding import EmbeddingLimits
from gemma_server.frames.operations import OperationService
from gemma_server.frames.server import FrameServer
from gemma_server.serving.models import Models
from testing.fake_embedding import FakeEmbeddingRunner, fake_embedding_model, fake_vector
from testing.waiting import wait_until
from tests.frames.peer import FINISHED, Peer

IDS = [2, *(6 + byte for byte in b"hello"), 1]


@pytest.fixture
def runner() -> FakeEmbeddingRunner:
    return FakeEmbeddingRunner()


@pytest.fixture
def peer(runner: FakeEmbeddingRunner, tmp_path: Path) -> Iterator[Peer]:
    deaths: list[BaseException] = []
    loaded = fake_embedding_model(runner, deaths.append, EmbeddingLimits(256, 4, 1000))
    models = Models("fake")
    models.registry.adopt(loaded)
    server = FrameServer(tmp_path / "socket", OperationService(models), deaths.append, threads=4)
    server.start()
    with Peer(tmp_path / "socket") as peer:
        yield peer
    runner.open.set()
    wait_until(lambda: models.leases == 0)
    server.stop(5.0)
    loaded.engine.stop()
    assert deaths == []


def test_a_text_s_embedding(peer: Peer) -> None:
    peer.ask(id=1, op="embed", input="hello")
    answer = peer.answer()
    assert answer is not None
    kind, told = answer
    assert (kind, told["id"]) == (FINISHED, 1)
    assert told["data"] == [
        {"object": "embedding", "index": 0, "embedding": fake_vector(IDS).tolist()}
    ]


def test_another_kind_of_model_is_refused(peer: Peer) -> None:
    peer.ask(id=1, op="generate", prompt="hello")
    assert peer.error()["code"] == "wrong_kind_of_model"


def test_it_can_be_cancelled_and_has_a_time_limit(peer: Peer, runner: FakeEmbeddingRunner) -> None:
    runner.open.clear()
    peer.ask(id=1, op="embed", input="hello")
    wait_until(lambda: len(runner.steps) == 1)
    peer.ask(id=1, op="cancel")
    error = peer.error()
    assert (error["id"], error["code"], error["status"]) == (1, "cancelled", 499)
    peer.ask(id=2, op="embed", input="hello", timeout_ms=50)
    assert peer.error()["code"] == "deadline"


def test_who_closes_the_connection_gives_up(peer: Peer, runner: FakeEmbeddingRunner) -> None:
    runner.open.clear()
    peer.ask(id=1, op="embed", input="hello")
    wait_until(lambda: len(runner.steps) == 1)
    peer.sock.close()
