"""HTTP requests as they come off the wire: unreadable, by half, slow, and too large."""

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.http_client import Answer, ask, raw_answer, send
from testing.server import LONG, POST_ECHO, SERVE, Server, serve_with_runner
from testing.waiting import wait_until
from tests.server.conftest import Start

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"GARBAGE\r\n\r\n", 400, id="no request line"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, id="TLS"),
        pytest.param(b"GET /healthz HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param(b"GET /healthz HTTP/9.9\r\n\r\n", 400, id="version"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nNo colon\r\n\r\n", 400, id="header"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nB\0d: x\r\n\r\n", 400, id="header name"),
        pytest.param(b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n", 414, id="long line"),
        pytest.param(
            b"GET /healthz HTTP/1.1\r\nA: " + b"x" * 10_000 + b"\r\n\r\n", 431, id="long header"
        ),
        pytest.param(b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, id="headers"),
        pytest.param(POST_ECHO + b"Content-Length: abc\r\n\r\n", 400, id="length abc"),
        pytest.param(POST_ECHO + b"Content-Length: -1\r\n\r\n", 400, id="length -1"),
        pytest.param(POST_ECHO + b"Content-Length: 1_0\r\n\r\n", 400, id="length 1_0"),
        pytest.param(
            POST_ECHO + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, id="two lengths"
        ),
        pytest.param(
            POST_ECHO + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="length and chunked",
        ),
        pytest.param(POST_ECHO + b"Transfer-Encoding: odd\r\n\r\n", 501, id="transfer coding"),
        pytest.param(POST_ECHO + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, id="chunk size"),
        pytest.param(POST_ECHO + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\n", 417, id="expect"),
    ],
)
def test_unreadable_http_gets_the_error_form(
    server: Server, request_bytes: bytes, status: int
) -> None:
    with server.open_socket(request_bytes) as connection:
        answer = raw_answer(connection)
    assert answer.error["type"] == "invalid_request_error"
    assert answer.status == status


def test_a_body_that_ends_early_is_a_client_error(server: Server) -> None:
    with server.open_socket(POST_ECHO + b'Content-Length: 100\r\n\r\n{"prompt":') as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = raw_answer(connection)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


def _post_bytes(server: Server, body: bytes, *, chunked: bool) -> Answer:
    connection = server.connect()
    data = (body[at : at + 65536] for at in range(0, len(body), 65536)) if chunked else body
    headers = {"Content-Type": "application/json"}
    try:
        connection.request("POST", "/echo", data, headers, encode_chunked=chunked)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_within_the_limit_is_taken_whole(server: Server, chunked: bool) -> None:
    text = "x" * 1_000_000
    answer = _post_bytes(server, b'{"prompt": "%s"}' % text.encode(), chunked=chunked)
    assert answer.json == {"echo_prompt": text}


def test_a_body_in_65536_chunks_is_taken_whole_beside_others(server: Server) -> None:
    text = "x" * (65_536 - len(b'{"prompt": ""}'))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"prompt": "%s"}' % text.encode())
    with server.open_socket(POST_ECHO + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        connection.sendall(chunks)
        assert server.ask("GET", "/healthz").status == 200
        connection.sendall(b"0\r\n\r\n")
        assert raw_answer(connection).json == {"echo_prompt": text}


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(server: Server, chunked: bool) -> None:
    head = POST_ECHO + (b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1048590")
    body = b'{"prompt": "' + b"x" * 1_048_576 + b'"}'
    data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    with server.open_socket() as connection:
        connection.sendall(head + b"\r\n\r\n" + data)
        answer = raw_answer(connection)
    assert (answer.status, answer.error["code"]) == (413, "request_entity_too_large")


def test_expect_100_continue_is_answered(server: Server) -> None:
    head = POST_ECHO + b"Content-Length: 13\r\nExpect: 100-continue\r\n\r\n"
    with server.open_socket(head) as connection:
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'{"prompt": 1}')
        assert raw_answer(connection).json == {"echo_prompt": 1}


@pytest.mark.parametrize(
    "half",
    [b"", b"GET /healthz HT", POST_ECHO, POST_ECHO + b'Content-Length: 50\r\n\r\n{"prompt'],
    ids=["nothing", "half a line", "half a header", "half a body"],
)
def test_requests_sent_by_half_do_not_block_others(server: Server, half: bytes) -> None:
    sockets = [server.open_socket(half) for _ in range(20)]
    began = time.monotonic()
    for _ in range(5):
        assert server.ask("GET", "/healthz").status == 200
    assert server.prompt("x").json["response"] == "x"
    assert time.monotonic() - began < 3
    for connection in sockets:
        connection.close()


def test_a_request_that_comes_byte_by_byte_is_answered(server: Server) -> None:
    with server.open_socket() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n":
            connection.sendall(bytes([byte]))
            time.sleep(0.002)
        assert raw_answer(connection).status == 200


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits for a body for one second."""
    patched = "import gemma_server.server.http.worker as worker\nworker.SOCKET_TIMEOUT_S = 1\n"
    command, code, *flags = serve_with_runner("Real")
    server = Server(tmp_path_factory.mktemp("impatient"), (command, patched + code, *flags))
    try:
        yield server.wait_ready()
    finally:
        server.end()


def test_a_body_that_stalls_is_408_and_no_error_of_ours(impatient: Server) -> None:
    for rest in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
        with impatient.open_socket(POST_ECHO + rest) as connection:
            answer = raw_answer(connection)
        assert answer.status == 408
        assert answer.error["code"] == "request_timeout"
    assert "Traceback" not in impatient.stderr


def test_a_body_that_comes_too_slowly_is_408(impatient: Server) -> None:
    """Else a client that sends a byte now and then keeps its thread for ever."""
    with impatient.open_socket(POST_ECHO + b"Content-Length: 100\r\n\r\n") as connection:
        began = time.monotonic()
        while not select.select([connection], [], [], 0.2)[0]:
            connection.sendall(b" ")
            assert time.monotonic() - began < 5
        assert raw_answer(connection).status == 408


def test_half_a_body_that_nobody_wants_holds_no_thread(start: Start, tmp_path: Path) -> None:
    """Who has no key must not keep those away who have one."""
    keys = tmp_path / "keys"
    keys.write_text("a-key\n")
    server = start(*SERVE, "--slots=1", "--max-queue=0", f"--api-key-file={keys}")
    half = POST_ECHO + b"Content-Length: 100\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(server.open_socket(half))
        began = time.monotonic()
        assert server.ask("GET", "/healthz").status == 200
        assert time.monotonic() - began < 10  # 100 of them, 17 threads, 0.2 s each
        with server.open_socket(half) as connection:
            assert raw_answer(connection).status == 401
            assert connection.recv(1) == b""


def test_a_connection_outlives_a_refusal_that_did_not_need_its_body(server: Server) -> None:
    connection = server.connect()
    for _ in range(3):
        assert ask(connection, "POST", "/nowhere", {"prompt": "x" * 500_000}).status == 404
    assert ask(connection, "POST", "/echo", {"prompt": 1}).json == {"echo_prompt": 1}
    connection.close()


# A client that sends no more, and one that has gone.


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_sends_no_more_is_answered(slow_server: Server, stream: bool) -> None:
    """As `nc -N` and some proxies: the sending half is closed after the request."""
    body = json.dumps({"prompt": "half", "sampling_steps": 30, "stream": stream}).encode()
    head = b"POST /prompt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with slow_server.open_socket(sent) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = raw_answer(connection)  # reads over an interim answer, as clients do
    assert answer.status == 200
    assert b'"finish_reason"' in answer.body


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_has_gone_frees_its_slot(slow_server: Server, stream: bool) -> None:
    connection = slow_server.connect()
    send(connection, "POST", "/prompt", {"prompt": LONG, "stream": stream})
    wait_until(lambda: slow_server.load() == (1, 0))
    connection.close()
    wait_until(lambda: slow_server.load() == (0, 0), timeout_s=3)


@pytest.mark.parametrize("scheme", ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: on"])
def test_what_proxies_say_of_the_scheme_is_no_contradiction(server: Server, scheme: str) -> None:
    more = f"{scheme}\r\nX-Forwarded-Protocol: http\r\n\r\n".encode()
    with server.open_socket(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + more) as connection:
        assert raw_answer(connection).status == 200


def test_a_target_in_absolute_form_names_the_host(server: Server) -> None:
    for host, status in (("localhost", 200), ("evil.com", 403)):
        line = f"GET http://{host}/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with server.open_socket(line.encode()) as connection:
            assert raw_answer(connection).status == status
