"""Servers that start for a test and end with it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testing.server import SERVE, START_S, Server, listens, serve_slowly
from testing.waiting import wait_until

Start = Callable[..., Server]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers with these arguments and variables; waits until they are ready.

    One whose port is told is waited for only until it listens there.
    """
    servers: list[Server] = []

    def begin(
        *args: str,
        ready: bool = True,
        env: dict[str, str] | None = None,
        port: int | None = None,
    ) -> Server:
        home = tmp_path / f"server-{len(servers)}"
        home.mkdir()
        server = Server(home, args or SERVE, env, port)
        servers.append(server)
        if port is not None:
            wait_until(lambda: listens(port), START_S)
            return server
        return server.wait_ready() if ready else server

    yield begin
    for server in servers:
        server.end()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as it comes, for tests that leave it as it was."""
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        yield server.wait_ready()
    finally:
        server.end()


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one slot and a line of four that takes 50 ms for each token."""
    flags = ("--slots", "1", "--max-queue", "4")
    server = Server(tmp_path_factory.mktemp("slow"), serve_slowly(0.05, *flags))
    try:
        yield server.wait_ready()
    finally:
        server.end()
