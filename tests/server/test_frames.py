"""The socket for frames of a real server: whose it is, and how it begins and ends."""

import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from testing.server import LONG, SERVE, START_S, serve_slowly, serve_when
from testing.waiting import wait_until
from tests.frames.peer import ECHO, PIECE, Peer, packed
from tests.server.conftest import Start

pytestmark = pytest.mark.slow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket shall be."""
    return tmp_path / "frames"


def test_frames_beside_http(start: Start, path: Path) -> None:
    """Mode 0660; one model behind both; the socket is gone with the server."""
    server = start(*SERVE, "--frames", str(path))
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    with Peer(path) as peer:
        peer.ask(id=1, op="generate", prompt="ab", sampling_steps=2)
        assert peer.whole(1)[1]["response"] == "ab"
    assert server.ask("POST", "/prompt", {"prompt": "ab"}).json["response"] == "ab"
    assert server.metrics()["gemma_completion_tokens_total"] == 5  # with the end of the second
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not path.exists()


def test_a_client_that_reads_once(start: Start, path: Path) -> None:
    """Simple ones take four bytes for the length, and the rest by a single read."""
    start(*SERVE, "--frames", str(path))
    with Peer(path) as peer:
        for _ in range(200):
            peer.send(packed(ECHO, b"x" * 3072))
            assert peer.sock.recv(4) == (3073).to_bytes(4)
            assert len(peer.sock.recv(3073)) == 3073


def test_echo_works_while_the_model_loads(start: Start, path: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server = start(*serve_when(gate, 0), "--frames", str(path), ready=False)
    wait_until(path.exists, START_S)
    with Peer(path) as peer:
        assert peer.echo() == b"?"
        peer.ask(id=1, op="ready")
        assert peer.whole(1)[1]["status"] == "loading"
        peer.ask(id=1, op="generate", prompt="a")
        assert peer.error()["code"] == "loading"
        gate.touch()
        server.wait_ready()
        peer.ask(id=1, op="generate", prompt="a", sampling_steps=1)
        assert peer.whole(1)[1]["response"] == "a"


def test_sigterm_lets_requests_end(start: Start, path: Path) -> None:
    """New ones and new connections are refused meanwhile."""
    server = start(*serve_slowly(0.01, "--frames", str(path)))
    with Peer(path) as peer:
        peer.ask(id="long", op="generate", prompt=LONG[:100], stream=True)
        first = peer.answer()
        assert first is not None
        assert first[0] == PIECE
        server.signal(signal.SIGTERM)
        wait_until(lambda: not path.exists(), 10)
        peer.ask(id="late", op="generate", prompt="a")
        ended: dict[str, Any] = {}
        while len(ended) < 2:
            answer = peer.answer()
            assert answer is not None
            if answer[0] != PIECE:
                ended[answer[1]["id"]] = answer[1]
        assert ended["late"]["error"]["code"] == "draining"
        assert ended["long"]["finish_reason"] == "stop"
        assert peer.answer() is None
    assert server.wait(20) == 0


def test_what_ends_too_late_is_told_so(start: Start, path: Path) -> None:
    server = start(*serve_slowly(0.05, "--frames", str(path), "--drain-timeout", "3"))
    with Peer(path) as peer:
        peer.ask(id=1, op="generate", prompt=LONG, sampling_steps=1000)
        wait_until(lambda: server.load() == (1, 0))
        server.signal(signal.SIGTERM)
        assert peer.error()["code"] == "draining"
    assert server.wait(20) == 0


def test_a_killed_worker_is_replaced_at_the_same_path(start: Start, path: Path) -> None:
    server = start(*SERVE, "--frames", str(path))
    with Peer(path) as peer:
        assert peer.echo() == b"?"
        os.kill(server.worker, signal.SIGKILL)
        assert peer.answer() is None
    wait_until(lambda: answers(path), START_S)


def test_a_stale_socket_is_replaced(start: Start, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    start(*SERVE, "--frames", str(path))
    assert answers(path)


def answers(path: Path) -> bool:
    """Whether a server takes frames there."""
    try:
        with Peer(path) as peer:
            peer.send(packed(ECHO, b"?"))
            return peer.answer() == (ECHO, b"?")  # None from one that is dying
    except OSError:
        return False
