"""The real server over real sockets: answers, connections, and clients that misbehave."""

import json
import signal
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from gemma_server.server.ready_line import address_of, announce
from gemma_server.settings import Settings
from testing.answers import error_inside
from testing.http_client import Stream, ask, raw_answer, read_answer, send
from testing.server import POST_ECHO, READY, SERVE, START_S, Server, serve_slowly
from testing.waiting import wait_until
from tests.server.conftest import Start

pytestmark = pytest.mark.slow

_FULL_STDOUT = """
import os, sys
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_WITHOUT_STDOUT = """
import os, sys
os.close(1)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
LONG = "x" * 1000  # at 50 ms for each token far longer than any test


def test_the_ready_line_is_all_there_ever_is_on_stdout(start: Start) -> None:
    server = start()
    server.prompt("hello")
    server.ask("GET", "/nothing")
    with server.open_socket(b"GARBAGE\r\n\r\n") as connection:
        raw_answer(connection)
    server.process.terminate()
    assert server.wait() == 0
    assert READY.fullmatch(server.stdout)
    assert f"curl http://127.0.0.1:{server.port}/prompt" in server.stderr
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize(
    ("before", "said"),
    [(_FULL_STDOUT, "cannot print the ready line: [Errno 28]"), (_WITHOUT_STDOUT, "try it: curl")],
    ids=["full", "closed"],
)
def test_it_serves_without_a_standard_output(start: Start, before: str, said: str) -> None:
    server = start("-c", before, *SERVE, ready=False)
    wait_until(lambda: said in server.stderr, START_S)
    server.process.terminate()
    assert server.wait() == 0
    assert "Traceback" not in server.stderr


def test_the_ready_line_needs_no_socket(capsys: pytest.CaptureFixture[str]) -> None:
    """SIGTERM may close the listeners just when the model is loaded."""
    settings = Settings(fake=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = address_of(settings, [listener])
        port = listener.getsockname()[1]
    announce(settings, SimpleNamespace(name="m", device="d", load_s=1.0), address, None)
    assert capsys.readouterr().out == f"gemma-server ready: http://127.0.0.1:{port} (m, d, 1.0 s)\n"


def test_nothing_that_a_client_sends_gets_into_the_log(start: Start) -> None:
    server = start()
    forged = "x\r\n[CRITICAL] FORGED\x1b[2J"
    quoted = urllib.parse.quote(forged)
    for path in ("/prompt", "/echo", "/v1/chat/completions", "/api/generate", "/tokenize"):
        for document in ({"prompt": forged}, {"prompt": 1, forged: 1}, {"model": forged}, forged):
            assert server.ask("POST", path, document).status < 500
    assert server.ask("GET", f"/{quoted}?{quoted}").status == 404
    assert server.ask("GET", "/healthz", X_Request_Id="FORGED, too", Host="FORGED").status == 403
    for garbage in (b"FORGED\r\n\r\n", b"GET / HTTP/1.1\r\nFORGED\r\n\r\n"):
        with server.open_socket(garbage) as connection:
            assert raw_answer(connection).status == 400
    server.process.terminate()
    assert server.wait() == 0
    assert "FORGED" not in server.stderr + server.stdout


def test_every_route_answers_over_a_socket(server: Server) -> None:
    assert server.ask("POST", "/echo", {"prompt": [1, "é"]}).json == {"echo_prompt": [1, "é"]}
    assert server.prompt("hello").json["response"] == "hello"
    assert server.prompt(["a", "b"]).json["response"] == ["a", "b"]
    assert server.ask("GET", "/healthz").json == {"status": "ok"}
    assert server.ask("GET", "/readyz").json["status"] == "ready"
    assert server.metrics()["gemma_ready"] == 1
    assert server.ask("GET", "/nothing").error["code"] == "not_found"
    assert server.ask("GET", "/prompt").error["code"] == "method_not_allowed"
    assert server.ask("GET", "/healthz", Host="evil.com").status == 403


def test_a_stream_arrives_piece_by_piece_and_ends_with_done(slow_server: Server) -> None:
    stream = slow_server.stream("hello")
    times = [time.monotonic() for _ in stream.events()]
    stream.close()
    # h, e, l, l, o at 50 ms each: they were not collected first.
    assert times[4] - times[0] > 0.1
    assert slow_server.stream("héllo").text() == "héllo"


def test_one_connection_serves_many_requests_errors_among_them(server: Server) -> None:
    connection = server.connect()
    connection.connect()
    first = connection.sock
    for _ in range(20):
        assert ask(connection, "POST", "/echo", {"prompt": "x"}).status == 200
        assert ask(connection, "POST", "/echo", {"wrong": "x"}).status == 400
        assert ask(connection, "POST", "/prompt", {"prompt": "x"}).json["response"] == "x"
        assert ask(connection, "POST", "/nothing", {"prompt": "x" * 10_000}).status == 404
        send(connection, "POST", "/prompt", {"prompt": "ab", "stream": True})
        assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
        assert connection.sock is first
    connection.close()


def test_32_clients_at_once_get_what_they_would_get_alone(server: Server) -> None:
    def ask_often(client: int) -> list[str]:
        texts = []
        for round_ in range(6):
            text = f"client {client}, round {round_}: {'y' * (client * 3)}"
            if (client + round_) % 2:
                answer = server.stream(text).text()
            else:
                answer = server.prompt(text).json["response"]
            assert answer == text
            texts.append(answer)
        return texts

    with ThreadPoolExecutor(32) as pool:
        assert sum(len(texts) for texts in pool.map(ask_often, range(32))) == 32 * 6
    assert server.load() == (0, 0)


def test_a_full_line_refuses_while_health_still_answers(slow_server: Server) -> None:
    streams = [slow_server.connect() for _ in range(5)]
    for connection in streams:
        send(connection, "POST", "/prompt", {"prompt": LONG, "stream": True})
    wait_until(lambda: slow_server.load() == (1, 4))
    refused = slow_server.prompt("x")
    assert (refused.status, refused.error["code"]) == (429, "overloaded")
    assert int(refused.headers["Retry-After"]) >= 1
    assert slow_server.ask("GET", "/readyz").status == 200
    assert slow_server.ask("POST", "/echo", {"prompt": 1}).status == 200
    for connection in streams:
        connection.close()
    wait_until(lambda: slow_server.load() == (0, 0))


def _start_streaming(server: Server) -> Callable[[], None]:
    stream = server.stream(LONG)
    next(stream.events())
    return stream.close


def _start_waiting(server: Server) -> Callable[[], None]:
    connection = server.connect()
    send(connection, "POST", "/prompt", {"prompt": LONG})
    return connection.close


def _start_waiting_for_a_list(server: Server) -> Callable[[], None]:
    connection = server.connect()
    send(connection, "POST", "/prompt", {"prompt": [LONG, LONG]})
    return connection.close


@pytest.mark.parametrize(
    ("begin", "load"),
    [
        (_start_streaming, (1, 0)),
        (_start_waiting, (1, 0)),
        (_start_waiting_for_a_list, (1, 1)),
    ],
)
def test_a_client_that_leaves_frees_its_slot_within_a_second(
    slow_server: Server, begin: Callable[[Server], Callable[[], None]], load: tuple[float, float]
) -> None:
    leave = begin(slow_server)
    wait_until(lambda: slow_server.load() == load)
    leave()
    wait_until(lambda: slow_server.load() == (0, 0), timeout_s=1)
    assert slow_server.prompt("ok").json["response"] == "ok"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_the_line_frees_its_place_within_a_second(
    slow_server: Server, stream: bool
) -> None:
    running = slow_server.stream(LONG)
    waiting = slow_server.connect()
    send(waiting, "POST", "/prompt", {"prompt": LONG, "stream": stream})
    wait_until(lambda: slow_server.load() == (1, 1))
    waiting.close()
    wait_until(lambda: slow_server.load() == (1, 0), timeout_s=1)
    running.close()
    wait_until(lambda: slow_server.load() == (0, 0), timeout_s=1)


def test_a_deadline_ends_an_answer_and_breaks_a_stream(slow_server: Server) -> None:
    answer = slow_server.ask("POST", "/prompt", {"prompt": LONG}, X_Request_Timeout_Ms="300")
    assert (answer.status, answer.error["code"]) == (504, "deadline")
    connection = slow_server.connect()
    body = {"prompt": LONG, "stream": True}
    send(connection, "POST", "/prompt", body, X_Request_Timeout_Ms="300")
    stream = Stream(connection)
    *pieces, failure = stream.broken()
    assert pieces
    assert error_inside(failure, stream.request_id)["code"] == "deadline"
    wait_until(lambda: slow_server.load() == (0, 0), timeout_s=1)


def test_a_clients_own_deadline_leaves_no_traceback_in_the_log(start: Start) -> None:
    server = start(*serve_slowly(0.05))
    connection = server.connect()
    body = {"prompt": LONG, "stream": True}
    send(connection, "POST", "/prompt", body, X_Request_Timeout_Ms="1500")
    assert Stream(connection).broken()[-1]["error"]["code"] == "deadline"
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.stderr


def _misbehave(server: Server, round_: int) -> None:
    """One connection of some kind, opened and left."""
    match round_ % 5:
        case 0:
            server.open_socket().close()
        case 1:
            server.open_socket(b"GET /healthz HTTP/1.1\r\nHo").close()
        case 2:
            assert server.ask("POST", "/echo", {"prompt": round_}).status == 200
        case 3:
            stream = server.stream("x" * 100, ignore_eos=True, sampling_steps=1500)
            next(stream.events())
            stream.close()
        case _:
            with server.open_socket(POST_ECHO + b"Content-Length: 10\r\n\r\n123") as connection:
                connection.shutdown(socket.SHUT_RDWR)


def test_200_connections_leave_no_descriptor_and_no_thread_behind(start: Start) -> None:
    server = start()

    def count(what: str) -> int:
        return len(list(Path(f"/proc/{server.worker}/{what}").iterdir()))

    for round_ in range(25):
        _misbehave(server, round_)
    wait_until(lambda: server.load() == (0, 0))
    time.sleep(0.5)  # the last descriptors close behind the last answers
    descriptors, threads = count("fd"), count("task")
    for round_ in range(200):
        _misbehave(server, round_)
    wait_until(lambda: server.load() == (0, 0))
    wait_until(lambda: count("fd") <= descriptors + 3)
    assert count("task") <= threads + 5
    assert "Traceback" not in server.stderr


def test_clients_that_leave_and_clients_that_stay_do_not_disturb_each_other(
    slow_server: Server,
) -> None:
    answers: list[str] = []

    def stay() -> None:
        answers.append(slow_server.prompt("stay").json["response"])

    threads = [threading.Thread(target=stay) for _ in range(3)]
    for thread in threads:
        # Places for two more, however late the server notices who left.
        wait_until(lambda: sum(slow_server.load()) <= 3)
        leaving = slow_server.connect()
        send(leaving, "POST", "/prompt", {"prompt": LONG})
        thread.start()
        time.sleep(0.1)
        leaving.close()
    for thread in threads:
        thread.join(15)
    assert answers == ["stay"] * 3


def test_bytes_behind_a_request_do_not_hide_that_its_client_left(start: Start) -> None:
    server = start(*serve_slowly(0.05, "--slots", "1"))
    body = json.dumps({"prompt": "x" * 400, "sampling_steps": 400}).encode()
    head = f"POST /prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"Content-Type: application/json\r\n\r\n" + body + b"\r\n"
    with server.open_socket(request):
        wait_until(lambda: server.load()[0] == 1)
    wait_until(lambda: server.load()[0] == 0, 1.0)


def test_each_prompt_of_a_list_frees_its_slot_at_its_own_stop_string(start: Start) -> None:
    server = start(*serve_slowly(0.02, "--slots", "2"))
    connection = server.connect()
    send(connection, "POST", "/prompt", {"prompt": ["x" * 200, "a" * 40 + "b" * 9], "stop": "b"})
    wait_until(lambda: server.load()[0] == 2)
    wait_until(lambda: server.load()[0] == 1, 1.5)
    answer = read_answer(connection.getresponse())
    connection.close()
    assert answer.json["response"] == ["x" * 128, "a" * 40]
    assert answer.json["finish_reason"] == ["length", "stop"]
