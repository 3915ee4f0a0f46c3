"""How the server starts: readiness, gunicorn by hand, addresses and sockets."""

import http.client
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from testing.server import (
    BY_HAND,
    READY,
    SERVE,
    START_S,
    Answer,
    UnixConnection,
    ask,
    assert_refused,
    free_port,
    listens,
    run,
    serve_with_runner,
)
from testing.waiting import wait_until
from tests.server.conftest import Start

pytestmark = pytest.mark.slow

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
    port = free_port()
    args = serve_with_runner("lambda slots: time.sleep(3) or Real(slots)", "--port", str(port))
    server = start(*args, ready=False)
    wait_until(lambda: listens(port), START_S)

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


def test_a_load_that_falls_over_ends_the_server_with_code_3(home: Path) -> None:
    result = run(home, serve_with_runner("lambda slots: 1 / 0"))
    assert result.returncode == 3
    assert result.stdout == ""
    assert "gemma-server: cannot load the model: ZeroDivisionError" in result.stderr


# By hand.


def test_gunicorn_by_hand_serves(start: Start) -> None:
    server = start(*BY_HAND, env={"GEMMA_FAKE": "1", "GEMMA_PORT": "0"})
    assert server.prompt("by hand").json["response"] == "by hand"
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert READY.fullmatch(server.stdout)


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
    start: Start, home: Path, socket_path: Path
) -> None:
    """Another server is refused there, and changes nothing."""
    args = ("-m", "gemma_server", "serve", "--fake", "--uds", str(socket_path))
    server = start(*args)
    mode = socket_path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) & ~0o660 == 0
    assert _echo_over(socket_path).json == {"echo_prompt": "x"}
    assert f"ready: unix:{socket_path} " in server.stdout
    refused = run(home, args)
    assert_refused(refused.returncode, 2, refused.stderr, str(socket_path), "another server")
    assert socket_path.is_socket()
    listening = Path(f"/proc/{server.process.pid}/net/tcp").read_text()
    assert _tcp_listeners_of(server.worker, listening) == []
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not socket_path.exists()


def test_a_port_that_is_asked_for_is_served_beside_the_socket(
    start: Start, socket_path: Path
) -> None:
    server = start(*SERVE, "--uds", str(socket_path))
    assert server.ask("POST", "/echo", {"prompt": "x"}).json == {"echo_prompt": "x"}
    assert server.ask("POST", "/echo", {"prompt": "x"}, Host="evil.example").status == 403
    assert _echo_over(socket_path).json == {"echo_prompt": "x"}
    over_unix = UnixConnection(socket_path, 5)
    # As Go programs name it; no web page can come this way.
    assert ask(over_unix, "POST", "/echo", {"prompt": "x"}, Host="unix").status == 200
    over_unix.close()
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
