"""A frame server on the fake engine, in this process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gemma_server.frames.operations import OperationService
from gemma_server.frames.server import FrameServer
from tests.frames.peer import Peer
from tests.web.conftest import App, Serve, serve

__all__ = ["serve"]  # a fixture


@dataclass
class Lane:
    """A frame server, and what is behind it."""

    path: Path
    server: FrameServer
    app: App

    def connect(self) -> Peer:
        """A new connection."""
        return Peer(self.path)


Open = Callable[..., Lane]


@pytest.fixture(scope="module")
def open_lane(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Makes lanes; the keywords are those of `serve`, and how many threads there are."""
    made: list[Lane] = []
    deaths: list[BaseException] = []

    def make(*, threads: int = 80, **settings: Any) -> Lane:
        app = serve(**settings)
        path = tmp_path_factory.mktemp("frames") / "socket"
        service = OperationService(app.models)
        server = FrameServer(path, service, deaths.append, threads=threads)
        server.start()
        made.append(Lane(path, server, app))
        return made[-1]

    yield make
    for lane in made:
        lane.app.runner.open.set()
        lane.server.stop(5.0)
        assert not lane.path.exists()
        assert lane.app.models.leases == 0
    assert deaths == []


@pytest.fixture(scope="module")
def lane(open_lane: Open) -> Lane:
    """The lane for tests that leave nothing behind."""
    return open_lane(context_length=2048)


@pytest.fixture
def peer(lane: Lane) -> Iterator[Peer]:
    """A connection of the test's own."""
    with lane.connect() as connected:
        yield connected
