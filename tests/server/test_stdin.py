"""--stop-with-stdin: the server ends with the program that holds the other end of its pipe."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.server import SERVE, START_S, is_our_server, serve_slowly, serve_with_runner
from testing.waiting import wait_until
from tests.server.conftest import Start

pytestmark = pytest.mark.slow

FLAG = "--stop-with-stdin"
_FROM_PIPE = """
import os, sys
os.dup2(os.open(sys.argv[1], os.O_RDONLY), 0)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
_FROM_NOTHING = """
import os, sys
os.close(0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE).wait()
"""


class Pipe:
    """A named pipe that servers read as their standard input."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._path = path
        self._end = os.open(path, os.O_RDWR)  # to open it for writing alone would wait for a reader

    def feeds(self, *args: str) -> tuple[str, ...]:
        """Arguments for Python that run it with these, and the pipe as standard input."""
        return ("-c", _FROM_PIPE, str(self._path), *args)

    def write(self, data: bytes) -> None:
        """Send data that nobody wants."""
        os.write(self._end, data)

    def close(self) -> None:
        """End it, as the death of its holder does."""
        if self._end >= 0:
            os.close(self._end)
            self._end = -1


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    """A pipe that is held open."""
    pipe = Pipe(tmp_path / "pipe")
    yield pipe
    pipe.close()


def test_the_end_of_the_pipe_drains_the_server(start: Start, pipe: Pipe) -> None:
    server = start(*pipe.feeds(*serve_slowly(0.05, FLAG)))
    worker = server.worker
    text = "finish me, all of it"
    stream = server.stream(text)
    pipe.write(b"what comes through the pipe changes nothing\n")
    next(stream.events())
    pipe.close()
    assert stream.text().endswith("all of it")
    assert server.wait() == 0
    assert not is_our_server(worker)
    assert "Traceback" not in server.stderr


def test_the_end_of_the_pipe_ends_a_server_that_loads(start: Start, pipe: Pipe) -> None:
    args = serve_with_runner("lambda slots: time.sleep(60)", FLAG)
    server = start(*pipe.feeds(*args), ready=False)
    wait_until(lambda: "starting" in server.stderr, START_S)
    pipe.close()
    assert server.wait() == 0
    assert server.stdout == ""
    assert "Traceback" not in server.stderr


def test_a_worker_that_took_the_place_of_another_watches_the_pipe_too(
    start: Start, pipe: Pipe
) -> None:
    server = start(*pipe.feeds(*SERVE, FLAG))
    os.kill(server.worker, signal.SIGKILL)
    server.wait_ready(times=2)
    pipe.close()
    assert server.wait() == 0


def test_a_killed_parent_takes_master_and_worker_along(start: Start) -> None:
    parent = start("-c", _PARENT, *SERVE, FLAG)
    master = parent.worker
    [worker] = map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split())
    assert is_our_server(master)
    assert is_our_server(worker)
    parent.signal(signal.SIGKILL)
    wait_until(lambda: not is_our_server(master) and not is_our_server(worker), timeout_s=15)


@pytest.mark.parametrize("before", [(), ("-c", _FROM_NOTHING)], ids=["dev_null", "closed"])
def test_without_a_standard_input_it_ends_at_once(start: Start, before: tuple[str, ...]) -> None:
    server = start(*before, *SERVE, FLAG, ready=False)
    assert server.wait() == 0
    assert "Traceback" not in server.stderr
