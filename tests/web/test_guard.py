"""Who may ask: Host names on loopback, and API keys."""

from pathlib import Path

import pytest

from testing.answers import assert_error
from tests.web.conftest import App, Serve

LOCAL = [
    *("localhost", "localhost:20200", "LOCALHOST", "foo.localhost", "foo.localhost:1"),
    *("127.0.0.1", "127.0.0.1:20200", "127.8.9.10", "[::1]", "[::1]:20200"),
]
FOREIGN = [
    *("", "evil.com", "evil.com:20200", "127.0.0.1.evil.com", "localhost.evil.com"),
    *("evillocalhost", "0.0.0.0", "192.168.0.1", "[::]", "[::1].evil.com", "[::1", "::1"),
    *("localhost:80@evil.com", "localhost:evil.com", "2130706433", "a b", "é"),
]


@pytest.mark.parametrize("host", LOCAL)
def test_a_loopback_host_may_ask(app: App, host: str) -> None:
    response = app.client.post("/echo", json={"prompt": 1}, headers={"Host": host})
    assert response.status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", ["/echo", "/prompt", "/healthz", "/metrics", "/nothing"])
def test_a_foreign_host_on_loopback_is_403_everywhere(app: App, host: str, path: str) -> None:
    response = app.client.post(path, json={"prompt": "x"}, headers={"Host": host})
    error = assert_error(response, 403, "forbidden")
    assert error["type"] == "permission_error"


def test_a_foreign_host_never_reaches_the_engine(serve: Serve) -> None:
    app = serve()
    app.prompt("x", headers={"Host": "evil.com"})
    assert app.engine.stats().steps == 0


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A file with three keys and a blank line."""
    path = tmp_path / "keys"
    path.write_text("first-key\n\n  second-key  \nschlüssel\n")
    return path


def test_other_hosts_may_ask_where_the_server_is_not_local(
    serve: Serve, keys: Path, tmp_path: Path
) -> None:
    headers = {"Host": "gemma.example", "Authorization": "Bearer first-key"}
    assert serve(host="0.0.0.0", api_key_file=keys).prompt("x", headers=headers).status_code == 200
    assert serve(uds=tmp_path / "socket").prompt("x", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer wrong", 401),
        ("Bearer first-ke", 401),
        ("Bearer first-key2", 401),
        ("Bearer first-key second-key", 401),
        ("Basic first-key", 401),
        ("first-key", 401),
        ("Bearer schlussel", 401),
        ("Bearer schlüssel".encode().decode("latin-1"), 200),  # as WSGI has bytes
        ("Bearer first-key", 200),
        ("Bearer second-key", 200),
        ("bearer  first-key", 200),
    ],
)
def test_one_of_the_keys_is_needed(
    serve: Serve, keys: Path, header: str | None, status: int
) -> None:
    app = serve(api_key_file=keys)
    headers = {} if header is None else {"Authorization": header}
    for path in ("/prompt", "/echo"):
        response = app.post(b'{"prompt": "x"}', path, headers=headers)
        if status == 200:
            assert response.status_code == 200
        else:
            error = assert_error(response, 401, "unauthorized")
            assert error["type"] == "authentication_error"
            assert response.headers["WWW-Authenticate"].lower() == "bearer"
            assert "first-key" not in error["message"]
    assert app.client.get("/metrics", headers=headers).status_code == status


def test_health_is_public_and_metrics_and_unknown_paths_are_not(serve: Serve, keys: Path) -> None:
    client = serve(api_key_file=keys).client
    for path in ("/healthz", "/readyz", "/health", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200
    assert client.get("/v2").status_code == client.get("/v2/models").status_code == 401
    for path in ("/metrics", "/nothing", "/healthz/more", "/prompt"):
        assert_error(client.get(path), 401, "unauthorized")
