"""The file at which frames are taken."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gemma_server.frames.operations import OperationService
from gemma_server.frames.server import FrameServer
from testing.waiting import wait_until
from tests.frames.peer import Peer
from tests.web.conftest import Serve


@pytest.mark.parametrize("name", ["socket", "s"])
def test_a_socket_that_is_there_takes_connections(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Who waits for the file need not try again, however busy the machine is."""
    listen = socket.socket.listen

    def listen_late(self: socket.socket, backlog: int) -> None:
        time.sleep(0.2)
        listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen_late)
    app, path, deaths = serve(), tmp_path / name, list[BaseException]()
    service = OperationService(app.models)
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(FrameServer, path, service, deaths.append, threads=1)
        wait_until(path.exists)
        with Peer(path):
            server = making.result()
    server.start()
    server.stop(1.0)
    assert deaths == []
    assert list(tmp_path.iterdir()) == []
