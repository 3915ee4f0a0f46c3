"""How the server starts, what it refuses to start with, and how it ends."""

import http.client
import os
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from tests.server.conftest import Start
from tests.server.sidecar import (
    BY_HAND,
    GUNICORN,
    READY,
    SERVE,
    Answer,
    Server,
    UnixConnection,
    ask,
    is_our_server,
    read_answer,
    run,
    send,
    serve_slowly,
    serve_with_runner,
)
from tests.web.conftest import error_inside, wait_until

pytestmark = pytest.mark.slow

LONG = "x" * 1000
BY_HAND_ENV = {"GEMMA_FAKE": "1", "GEMMA_PORT": "0"}


def _gone(server: Server) -> bool:
    try:
        server.open_socket().close()
    except ConnectionError:
        return True
    return False


# Starting.


def test_two_servers_run_side_by_side(start: Start) -> None:
    first, second = start(), start()
    assert first.port != second.port
    for server, text in ((first, "one"), (second, "two")):
        assert server.prompt(text).json["response"] == text


def test_settings_reach_the_server_from_flags_and_environment(start: Start) -> None:
    env = {"GEMMA_SLOTS": "3", "GEMMA_CONTEXT_LENGTH": "32", "GEMMA_MODEL_NAME": "from-env"}
    server = start(*SERVE, "--slots", "5", env=env)
    assert server.metrics()["gemma_slots"] == 5
    too_long = server.prompt("x" * 32, sampling_steps=1)
    assert too_long.error["limit"] == 31
    assert server.ask("GET", "/readyz").json["model"] == "from-env"


def test_api_keys_guard_the_server(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key\n")
    server = start(*SERVE, "--api-key-file", str(keys))
    assert server.prompt("x").status == 401
    assert server.ask("GET", "/healthz").status == 200
    allowed = server.ask("POST", "/prompt", {"prompt": "x"}, Authorization="Bearer a-key")
    assert allowed.json["response"] == "x"
    assert "a-key" not in server.stdout + server.stderr


def test_while_loading_health_and_echo_answer_and_prompts_are_refused(start: Start) -> None:
    port = _free_port()
    args = serve_with_runner("lambda slots: time.sleep(3) or Real(slots)", "--port", str(port))
    server = start(*args, ready=False)
    wait_until(lambda: _listens(port), timeout_s=20)

    def early(method: str, path: str, document: object = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            return ask(connection, method, path, document)
        finally:
            connection.close()

    assert early("GET", "/healthz").status == 200
    ready = early("GET", "/readyz")
    assert (ready.status, ready.json["status"]) == (503, "loading")
    refused = early("POST", "/prompt", {"prompt": "x"})
    assert (refused.status, refused.error["code"]) == (503, "loading")
    assert int(refused.headers["Retry-After"]) >= 1
    assert early("POST", "/echo", {"prompt": "x"}).status == 200
    assert server.stdout == ""
    server.wait_ready()
    assert server.prompt("x").json["response"] == "x"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return False
    return True


def test_a_load_that_falls_over_ends_the_server_with_code_3(home: Path) -> None:
    result = run(home, serve_with_runner("lambda slots: 1 / 0"))
    assert result.returncode == 3
    assert result.stdout == ""
    assert "gemma-server: cannot load the model: ZeroDivisionError" in result.stderr


# By hand.


def test_gunicorn_by_hand_serves(start: Start) -> None:
    server = start(*BY_HAND, env=BY_HAND_ENV)
    assert server.prompt("by hand").json["response"] == "by hand"
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert READY.fullmatch(server.stdout)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--workers", "2"), "one worker batches all requests"),
        (("--preload",), "a GPU does not survive"),
        (("-k", "sync"), "gemma_server.worker.SidecarWorker"),
        (("-k", "gthread"), "gemma_server.worker.SidecarWorker"),
    ],
)
def test_gunicorn_flags_that_cannot_work_are_refused(
    home: Path, flags: tuple[str, ...], reason: str
) -> None:
    result = run(home, (*BY_HAND, *flags), BY_HAND_ENV)
    _assert_refused(result.returncode, 2, result.stderr, flags[0].replace("-k", "--worker-class"))
    assert reason in result.stderr
    assert result.stdout == ""


def test_gunicorn_without_its_configuration_is_refused(home: Path) -> None:
    args = (*GUNICORN, "-b", "127.0.0.1:0", "gemma_server.worker:create_app()")
    result = run(home, args, BY_HAND_ENV)
    assert result.returncode != 0
    assert "start gunicorn with -c python:gemma_server.gunicorn_conf" in result.stderr


# Refused settings.


def _assert_refused(returncode: int, expected: int, stderr: str, *words: str) -> None:
    """It ended with this code, and said why in one line that has the words."""
    assert returncode == expected, stderr
    assert "Traceback" not in stderr
    reasons = [line for line in stderr.splitlines() if all(word in line for word in words)]
    assert len(reasons) == 1, stderr
    assert len(reasons[0]) < 400


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        (("--host", "0.0.0.0"), {}, ("--host", "0.0.0.0", "--api-key-file")),
        ((), {"GEMMA_HOST": "0.0.0.0"}, ("--host", "0.0.0.0", "--api-key-file")),
        (("--host", "::"), {}, ("--host", "--api-key-file")),
        (("--host", "gemma.example"), {}, ("gemma.example", "--api-key-file")),
        (("--port", "70000"), {}, ("--port", "GEMMA_PORT", "65535")),
        (("--port", "http"), {}, ("--port", "GEMMA_PORT")),
        ((), {"GEMMA_PORT": "-1"}, ("--port", "GEMMA_PORT")),
        (("--slots", "0"), {}, ("--slots", "GEMMA_SLOTS")),
        (("--context-length", "1"), {}, ("--context-length", "GEMMA_CONTEXT_LENGTH")),
        (("--max-queue", "1e3"), {}, ("--max-queue", "GEMMA_MAX_QUEUE")),
        (("--max-steps", "0"), {}, ("--max-steps", "GEMMA_MAX_STEPS")),
        (("--drain-timeout", "0"), {}, ("--drain-timeout", "GEMMA_DRAIN_TIMEOUT")),
        ((), {"GEMMA_DTYPE": "int4"}, ("--dtype", "GEMMA_DTYPE")),
        ((), {"GEMMA_FAKE": "maybe"}, ("--fake", "GEMMA_FAKE")),
        (("--dtype", "int4"), {}, ("--dtype",)),
        (("--nope",), {}, ("No such option", "--nope")),
        (("--api-key-file", "/no/such/file"), {}, ("--api-key-file", "/no/such/file")),
        (("--api-key-file", "/dev/null"), {}, ("--api-key-file", "/dev/null")),
        (("--api-key-file", "/"), {}, ("--api-key-file",)),
        (("--slots", "0", "--port", "-1"), {}, ("--slots", "--port")),
    ],
)
def test_a_setting_that_cannot_work_is_one_line_and_code_2(
    home: Path, flags: tuple[str, ...], env: dict[str, str], words: tuple[str, ...]
) -> None:
    args = ("-m", "gemma_server", "serve", *flags)
    result = run(home, args, {"GEMMA_FAKE": "1", "GEMMA_PORT": "0", **env})
    _assert_refused(result.returncode, 2, result.stderr, *words)
    assert result.stdout == ""


def test_an_api_key_file_that_is_no_text_is_refused(home: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"\xff\xfe\x00key\n")
    result = run(home, (*SERVE, "--api-key-file", str(keys)))
    _assert_refused(result.returncode, 2, result.stderr, "--api-key-file", str(keys))


def test_a_port_that_is_taken_is_said_and_nothing_is_served(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run(home, (*SERVE, "--port", str(port)))
    assert result.stdout == ""
    words = (f"--port {port}", "in use", "already running")
    _assert_refused(result.returncode, 2, result.stderr, *words)


# Models that cannot be loaded.


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(b"this is no model\n" * 100, id="text"),
        pytest.param(b"GGUF", id="magic alone"),
        pytest.param(b"GGUF" + bytes(96), id="zeros"),
        pytest.param(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 92, id="huge counts"),
        pytest.param(
            b"GGUF\x03\0\0\0" + (5).to_bytes(8, "little") + (9).to_bytes(8, "little") + bytes(76),
            id="cut off",
        ),
        pytest.param(b"GGUF" + b"\x63\0\0\0" + bytes(92), id="unknown version"),
    ],
)
def test_a_checkpoint_that_is_none_is_one_line_and_code_3(
    home: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    args = ("-m", "gemma_server", "serve", "--port", "0")
    result = run(home, args, {"MODEL_CHECKPOINT": str(path)}, timeout_s=60)
    _assert_refused(result.returncode, 3, result.stderr, "cannot load the model", str(path))
    assert result.stdout == ""


@pytest.mark.parametrize("files", [(), ("notes.txt",), ("_METADATA",), ("config.json",)])
def test_a_directory_that_is_no_checkpoint_is_one_line_and_code_3(
    home: Path, tmp_path: Path, files: tuple[str, ...]
) -> None:
    path = tmp_path / "checkpoint"
    path.mkdir()
    for name in files:
        (path / name).write_text("not what it seems\n")
    args = ("-m", "gemma_server", "serve", "--port", "0", "--model-checkpoint", str(path))
    result = run(home, args, {"MODEL_CHECKPOINT": "/overridden/by/the/flag"}, timeout_s=60)
    _assert_refused(result.returncode, 3, result.stderr, "cannot load the model", str(path))
    assert result.stdout == ""


# Unix sockets.


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    """Where a Unix socket may be; the directory's name is short, as their paths must be."""
    return tmp_path / "s"


def _echo_over(path: Path) -> Answer:
    connection = UnixConnection(path, 10)
    try:
        return ask(connection, "POST", "/echo", {"prompt": "x"})
    finally:
        connection.close()


def test_a_unix_socket_serves_its_owner_and_group_and_goes_with_the_server(
    start: Start, socket_path: Path
) -> None:
    server = start(*SERVE, "--uds", str(socket_path))
    mode = socket_path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) & ~0o660 == 0
    assert _echo_over(socket_path).json == {"echo_prompt": "x"}
    assert f"ready: unix:{socket_path} " in server.stdout
    listening = Path(f"/proc/{server.process.pid}/net/tcp").read_text()
    assert _tcp_listeners_of(server.worker, listening) == []
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not socket_path.exists()


def _tcp_listeners_of(pid: int, table: str) -> list[str]:
    """The rows of /proc/net/tcp that are listening sockets of this process."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    inodes = {link.removeprefix("socket:[").rstrip("]") for link in links if "socket:" in link}
    rows = [row.split() for row in table.splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]


def test_the_socket_of_a_server_that_was_killed_is_replaced(
    start: Start, socket_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(socket_path))
    start(*SERVE, "--uds", str(socket_path))
    assert _echo_over(socket_path).status == 200


def test_a_file_in_the_sockets_place_is_kept_and_refused(home: Path, socket_path: Path) -> None:
    socket_path.write_text("precious")
    result = run(home, (*SERVE, "--uds", str(socket_path)))
    assert result.returncode in (1, 2)
    assert str(socket_path) in result.stderr
    assert "Traceback" not in result.stderr
    assert socket_path.read_text() == "precious"


# Ending.


def test_sigterm_while_idle_ends_quickly_with_code_0(start: Start) -> None:
    server = start()
    kept_alive = server.connect()
    assert ask(kept_alive, "GET", "/healthz").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait(5) == 0
    kept_alive.close()
    assert "Traceback" not in server.stderr


def test_sigint_while_idle_ends_quickly_with_code_0(start: Start) -> None:
    server = start()
    server.signal(signal.SIGINT)
    assert server.wait(5) == 0
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_ends_it_cleanly_too(
    start: Start, number: signal.Signals
) -> None:
    server = start()
    worker = server.worker
    os.kill(worker, number)  # as a terminal does for Ctrl-C
    server.signal(number)
    assert server.wait(5) == 0
    assert not is_our_server(worker)
    assert "Traceback" not in server.stderr


def test_sigint_cuts_a_stream_but_never_silently(start: Start) -> None:
    server = start(*serve_slowly(0.05))
    stream = server.stream(LONG)
    next(stream.events())
    server.signal(signal.SIGINT)
    stream.broken()
    assert server.wait(5) == 0


def test_sigterm_while_loading_ends_quickly_and_is_no_failure(start: Start) -> None:
    server = start(*serve_with_runner("lambda slots: time.sleep(60)"), ready=False)
    wait_until(lambda: "starting" in server.stderr, timeout_s=20)
    server.signal(signal.SIGTERM)
    assert server.wait(5) == 0
    assert server.stdout == ""
    assert "cannot load" not in server.stderr
    assert "Traceback" not in server.stderr


def test_a_load_that_ends_while_the_server_drains_is_no_failure(start: Start) -> None:
    port = _free_port()
    args = serve_with_runner("lambda slots: time.sleep(2) or Real(slots)", "--port", str(port))
    server = start(*args, ready=False)
    wait_until(lambda: _listens(port), timeout_s=20)
    # A request that is still on its way in keeps the worker until the load is over.
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: localhost\r\n")
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        time.sleep(2.5)
    assert server.wait() == 0
    assert server.stdout == ""
    assert "Traceback" not in server.stderr


def test_sigterm_lets_streams_and_answers_finish_and_takes_no_more(start: Start) -> None:
    server = start(*serve_slowly(0.05, "--slots", "1"))
    text = "finish me, all of it: " + "z" * 20
    kept_alive = server.connect()
    assert ask(kept_alive, "GET", "/readyz").status == 200
    stream = server.stream(text)
    waiting = server.connect()
    send(waiting, "POST", "/prompt", {"prompt": "waited in the line"})
    wait_until(lambda: server.load() == (1, 1))
    server.signal(signal.SIGTERM)
    time.sleep(0.3)
    # A new connection is refused, or told; so is one that was there before.
    try:
        assert server.ask("GET", "/readyz").json["status"] == "draining"
        assert server.prompt("more").error["code"] == "draining"
    except ConnectionError:
        pass
    try:
        ready = ask(kept_alive, "GET", "/readyz")
        assert (ready.status, ready.json["status"]) == (503, "draining")
    except (ConnectionError, http.client.HTTPException):
        pass
    kept_alive.close()
    assert stream.text() == text
    assert read_answer(waiting.getresponse()).json["response"] == "waited in the line"
    waiting.close()
    assert server.wait() == 0
    assert "Traceback" not in server.stderr


def test_what_outlasts_the_drain_timeout_is_cut_and_told(start: Start) -> None:
    server = start(*serve_slowly(0.05, "--drain-timeout", "4"))
    stream = server.stream(LONG)
    waiting = server.connect()
    send(waiting, "POST", "/prompt", {"prompt": LONG})
    wait_until(lambda: server.load()[0] == 2)
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    *pieces, failure = stream.broken()
    assert len(pieces) > 10
    assert error_inside(failure, stream.request_id)["code"] == "draining"
    answer = read_answer(waiting.getresponse())
    waiting.close()
    assert (answer.status, answer.error["code"]) == (503, "draining")
    assert server.wait(10) == 0
    assert 1 < time.monotonic() - began < 8


@pytest.mark.parametrize("seconds", ["1", "2"])
def test_the_shortest_drain_timeouts_still_tell_a_stream(start: Start, seconds: str) -> None:
    server = start(*serve_slowly(0.05, "--drain-timeout", seconds))
    stream = server.stream(LONG)
    next(stream.events())
    server.signal(signal.SIGTERM)
    documents = stream.broken()
    assert error_inside(documents[-1], stream.request_id)
    assert server.wait() == 0


def test_a_killed_master_takes_its_worker_along(start: Start) -> None:
    server = start()
    worker = server.worker
    server.signal(signal.SIGKILL)
    server.wait()
    wait_until(lambda: not is_our_server(worker), timeout_s=10)
    assert _gone(server)


def test_a_killed_worker_breaks_its_stream_and_a_new_one_answers(start: Start) -> None:
    server = start(*serve_slowly(0.02))
    stream = server.stream(LONG)
    next(stream.events())
    first = server.worker
    os.kill(first, signal.SIGKILL)
    stream.broken()
    server.wait_ready(times=2)
    assert server.worker != first
    assert server.prompt("again").json["response"] == "again"


def test_an_engine_that_dies_breaks_its_stream_and_a_new_worker_answers(start: Start) -> None:
    server = start(*serve_with_runner("functools.partial(Real, step_s=0.02, fail_at=20)"))
    stream = server.stream("x" * 100)
    stream.broken()
    server.wait_ready(times=2)
    assert server.prompt("again").json["response"] == "again"
    assert server.process.poll() is None


def test_sighup_ends_the_server_as_sigterm_does(start: Start) -> None:
    """A closed terminal must not leave a server behind, nor load a second model."""
    server = start()
    server.signal(signal.SIGHUP)
    assert server.wait() == 0


@pytest.mark.parametrize("name", ["SIGTTIN", "SIGTTOU", "SIGUSR2"])
def test_signals_for_more_workers_change_nothing(start: Start, name: str) -> None:
    server = start()
    first = server.worker
    server.signal(signal.Signals[name])
    time.sleep(1.5)  # gunicorn looks at its signals once a second
    assert server.worker == first  # and fails where there are two
    assert server.prompt("still").json["response"] == "still"


def test_new_connections_are_refused_while_draining(start: Start) -> None:
    server = start(*serve_slowly(0.05))
    stream = server.stream(LONG)
    next(stream.events())
    server.signal(signal.SIGTERM)

    def refused() -> bool:
        try:
            server.open_socket().close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, timeout_s=3)
    assert server.process.poll() is None
    stream.close()
    assert server.wait() == 0


def test_a_socket_that_another_server_uses_is_left_to_it(
    start: Start, home: Path, socket_path: Path
) -> None:
    server = start("-m", "gemma_server", "serve", "--fake", "--uds", str(socket_path))
    args = ("-m", "gemma_server", "serve", "--fake", "--uds", str(socket_path))
    result = run(home, args)
    _assert_refused(result.returncode, 2, result.stderr, str(socket_path), "another server")
    assert socket_path.is_socket()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
