"""The image classifier as a server: the project's worker and frames around another model."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import trained
from classifier import Classifier
from testing.server import Server, run
from tests.examples.test_image_classifier import FOLDER, SMALL, random_bodies, random_parameters
from tests.frames.peer import RAW, Peer, packed

pytestmark = pytest.mark.slow
SERVE = (str(FOLDER / "serve.py"), "--port", "0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was never trained."""
    folder = tmp_path_factory.mktemp("model")
    trained.save(folder, SMALL, random_parameters(SMALL.network()))
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server takes frames."""
    return tmp_path_factory.mktemp("frames") / "socket"


@pytest.fixture(scope="module")
def server(model: Path, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the network; it ends as gemma-server does."""
    args = (*SERVE, "--frames", str(frames), "--model", str(model))
    server = Server(tmp_path_factory.mktemp("server"), args)
    try:
        yield server.wait_ready()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert not frames.exists()
    finally:
        server.end()


def test_images_are_classified(server: Server, frames: Path, model: Path) -> None:
    """As by a call in this process; several connections at once, each in its order."""
    classifier = Classifier(model)
    bodies = [body.tobytes() for body in random_bodies(64)]
    with Peer(frames) as one, Peer(frames) as other:
        for begin in range(0, len(bodies), 8):
            batch = bodies[begin : begin + 8]
            for peer in (one, other):
                peer.send(*(packed(RAW, body) for body in batch))
            for peer in (one, other):
                for body in batch:
                    assert peer.answer() == (RAW, classifier(body))
    assert len({classifier(body) for body in bodies}) > 1


def test_what_is_no_image_is_refused(server: Server, frames: Path) -> None:
    with Peer(frames) as peer:
        peer.send(packed(RAW, np.zeros(3071, np.uint8).tobytes()))
        error = peer.error()
        assert (error["status"], error["code"], error["about"]) == (400, "invalid_value", RAW)
        assert "3,072" in error["message"]
        peer.ask(id=1, op="ready")
        assert peer.whole(1)[1]["status"] == "ready"
        peer.ask(id=2, op="generate", prompt="a")
        assert peer.error()["code"] == "unknown_op"
        assert peer.echo() == b"?"


def test_http_tells_how_it_is(server: Server) -> None:
    for path, status in (("/healthz", "ok"), ("/readyz", "ready")):
        answer = server.ask("GET", path)
        assert (answer.status, answer.json["status"]) == (200, status)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = run(tmp_path, (*SERVE, "--frames", str(tmp_path / "f"), "--model", str(tmp_path)))
    assert done.returncode == 3
    assert "cannot load the model" in done.stderr
