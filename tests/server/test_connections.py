"""Connections that are kept: answers in one piece, and threads that nobody keeps for himself."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from testing.http_client import ask, raw_answer
from testing.server import SERVE, Server, serve_with_runner
from testing.waiting import wait_until
from tests.server.conftest import Start

pytestmark = pytest.mark.slow

ECHO = (
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\n"
    b'Content-Type: application/json\r\n\r\n{"prompt": 1}'
)
THREADS = 16 + 1  # for health, and for the one slot


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with few threads, for tests that leave none of them taken."""
    args = (*SERVE, "--slots", "1", "--max-queue", "0")
    server = Server(tmp_path_factory.mktemp("small"), args)
    try:
        yield server.wait_ready()
    finally:
        server.end()


def test_without_file_descriptors_the_worker_goes_on(start: Start) -> None:
    """Who comes too many waits for one to be free; nothing at work is lost."""
    few = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150)); "
        "from gemma_server.cli.main import main; main()"
    )
    server = start("-c", few, *SERVE[2:])
    worker = server.worker
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(server.open_socket())
        wait_until(lambda: "cannot take a connection" in server.stderr)
    wait_until(lambda: server.ask("POST", "/echo", {"prompt": 1}).status == 200, 20)
    assert server.worker == worker


def test_idle_connections_hold_no_thread(small: Server) -> None:
    idle = [small.connect() for _ in range(300)]
    try:
        for connection in idle:
            assert ask(connection, "POST", "/echo", {"prompt": 1}).status == 200
        began = time.monotonic()
        assert small.ask("POST", "/echo", {"prompt": 2}).json == {"echo_prompt": 2}
        assert time.monotonic() - began < 2  # a thread that waited for one would take 75 s
        for connection in idle:
            assert ask(connection, "POST", "/echo", {"prompt": 3}).status == 200
    finally:
        for connection in idle:
            connection.close()


def test_connections_that_say_nothing_hold_no_thread(small: Server) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(small.open_socket()) for _ in range(2 * THREADS)]
        began = time.monotonic()
        assert small.ask("POST", "/echo", {"prompt": 2}).status == 200
        assert time.monotonic() - began < 2
        silent[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw_answer(silent[-1]).status == 200


def test_connections_that_never_pause_leave_room_for_others(small: Server) -> None:
    pipelined = 3000
    greedy = [small.open_socket() for _ in range(THREADS)]
    answered = [0] * THREADS

    def write(index: int) -> None:
        with contextlib.suppress(OSError):  # it is closed before the end
            greedy[index].sendall(ECHO * pipelined)

    def read(index: int) -> None:
        with contextlib.suppress(OSError):
            while data := greedy[index].recv(65536):
                answered[index] += data.count(b"echo_prompt")

    threads = [
        threading.Thread(target=task, args=(index,))
        for task in (write, read)
        for index in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: min(answered) > 0)
    for _ in range(3):
        assert small.ask("POST", "/echo", {"prompt": 1}).status == 200
    assert max(answered) < pipelined  # nobody had to leave for it
    for peer in greedy:
        peer.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for peer in greedy:
        peer.close()


def test_an_answer_without_a_body_is_sent_and_the_connection_goes_on(small: Server) -> None:
    connection = small.connect()
    for _ in range(3):
        answer = ask(connection, "HEAD", "/")
        assert (answer.status, answer.body) == (200, b"")
        assert ask(connection, "POST", "/echo", {"prompt": 1}).status == 200
    connection.close()


def test_clients_that_do_not_close_hold_nobody_up(small: Server) -> None:
    """Nor do they keep the worker from telling its master that it lives."""
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            connection = stack.enter_context(small.open_socket(b"GARBAGE\r\n\r\n"))
            assert raw_answer(connection).status == 400
        began = time.monotonic()
        assert small.ask("POST", "/echo", {"prompt": 2}).status == 200
        assert time.monotonic() - began < 2
        # They are closed all the same.
        small.open_socket().close()
        wait_until(lambda: len(os.listdir(f"/proc/{small.worker}/fd")) < 30, 10)


def test_a_fault_of_ours_amid_an_answer_ends_its_connection_alone(start: Start) -> None:
    broken = (
        "import gemma_server.api.native.handlers as native\n"
        "native.PromptForm.end = lambda self, job: iter([{}['no such part']])\n"
    )
    command, code, *flags = serve_with_runner("Real")
    server = start(command, broken + code, *flags)
    worker = server.worker
    for _ in range(3):
        server.stream("abc").broken()
        assert server.prompt("abc").json["response"] == "abc"
    assert server.worker == worker
    assert server.stderr.count("Traceback") == 3


def test_a_body_that_is_too_large_ends_the_connection_and_says_so(small: Server) -> None:
    answer = small.prompt("x" * (1 << 20))
    assert (answer.status, answer.headers["Connection"]) == (413, "close")


def test_head_and_body_of_a_short_answer_come_together(small: Server) -> None:
    body = b'{"prompt": 1}'
    head = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with small.open_socket(
        head.encode() + b"Content-Type: application/json\r\n\r\n" + body
    ) as peer:
        assert b"echo_prompt" in peer.recv(65536)
