"""How the server starts: readiness, gunicorn by hand, addresses and sockets."""

import http.client
import os
import signal
import socket
import stat
from functools import partial
from pathlib import Path

import pytest

from testing.http_client import Answer, UnixConnection, ask
from testing.server import (
    BY_HAND,
    READY,
    SERVE,
    START_S,
    Server,
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


def _keys(folder: Path) -> str:
    path = folder / "keys"
    path.write_text("a-key\n")
    return str(path)


def test_what_gunicorn_s_flag_binds_is_held_to_the_same_rules(home: Path, start: Start) -> None:
    env = {"GEMMA_FAKE": "1"}
    result = run(home, (*BY_HAND, "-b", "0.0.0.0:0"), env)
    assert_refused(result.returncode, 2, result.stderr, "0.0.0.0", "--api-key-file")
    local = start(*BY_HAND, "-b", "127.0.0.1:0", env={**env, "GEMMA_HOST": "localhost"})
    assert local.ask("GET", "/healthz", Host="evil.com").status == 403
    guarded = {**env, "GEMMA_API_KEY_FILE": _keys(home)}
    port = free_port()
    reachable = start(*BY_HAND, "-b", f"0.0.0.0:{port}", env=guarded, port=port)
    assert reachable.ask("GET", "/healthz", Host="gemma.example").status == 200
    assert reachable.prompt("x").status == 401


# As systemd hands sockets over: sd_listen_fds(3).
_ACTIVATED = """
import os, sys
os.dup2({fd}, 3)
os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = "1", str(os.getpid())
os.execv(sys.executable, [sys.executable, *{args!r}])
"""


@pytest.mark.parametrize("args", [SERVE[:4], BY_HAND], ids=["serve", "by hand"])
def test_a_socket_that_systemd_opened_is_taken(home: Path, args: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = _ACTIVATED.format(fd=listener.fileno(), args=args)
        env = {"GEMMA_FAKE": "1", "GEMMA_PORT": str(port)}
        server = Server(home, ("-c", code), env, fds=(listener.fileno(),))
        try:
            assert server.wait_ready().port == port
            assert server.prompt("handed over").json["response"] == "handed over"
        finally:
            server.end()


def test_an_open_socket_of_systemd_s_needs_a_key(home: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        code = _ACTIVATED.format(fd=listener.fileno(), args=SERVE[:4])
        server = Server(home, ("-c", code), fds=(listener.fileno(),))
        assert_refused(server.wait(), 2, server.stderr, "0.0.0.0", "--api-key-file")


def test_an_ipv6_host_may_have_its_brackets(start: Start) -> None:
    if not _has_ipv6():
        pytest.skip("no IPv6 on this machine")
    for host in ("[::1]", "::1"):
        port = free_port()
        server = start(*SERVE[:4], "--host", host, "--port", str(port), ready=False)
        ready = f"gemma-server ready: http://[::1]:{port} ("
        wait_until(partial(server.said, ready), START_S)


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


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
