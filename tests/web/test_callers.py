"""Who shares the server with others: the holder of a key, else a user, else a connection."""

from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import App, Serve


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The callers whose requests reached the engine."""
    from gemma_server.engine.engine import Engine

    submit, callers = Engine.submit, list[str]()

    def noted(
        self: Engine, requests: Any, deadline: Any, caller: str, *, returns: bool, **more: Any
    ) -> Any:
        assert returns != caller.startswith("connection")
        callers.append(caller)
        return submit(self, requests, deadline, caller, returns=returns, **more)

    monkeypatch.setattr(Engine, "submit", noted)
    return callers


def ask(app: App, path: str, key: str | None = None, port: str = "1", **fields: Any) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"prompt": "x", "max_tokens": 1} if path.startswith("/v1") else {"prompt": "x"}
    where = {"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": port}
    response = app.client.post(path, json=body | fields, headers=headers, environ_overrides=where)
    assert response.status_code == 200


def test_connections_are_told_apart(serve: Serve, asked: list[str]) -> None:
    app = serve()
    for path, port in (("/prompt", "1"), ("/prompt", "2"), ("/v1/completions", "1")):
        ask(app, path, port=port)
    assert asked[0] == asked[2] != asked[1]


def test_a_user_is_the_same_on_every_connection(serve: Serve, asked: list[str]) -> None:
    app = serve()
    for user, port in (("ann", "1"), ("ann", "2"), ("bob", "1"), (None, "1")):
        ask(app, "/v1/completions", port=port, user=user)
    assert asked[0] == asked[1]
    assert len(set(asked)) == 3


def test_a_key_is_one_caller_whatever_users_it_names(
    serve: Serve, asked: list[str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    app = serve(api_key_file=keys)
    for key, user in (("one", "ann"), ("one", "bob"), ("two", "ann")):
        ask(app, "/v1/completions", key, user=user)
    assert asked[0] == asked[1] != asked[2]
    assert not any("one" in caller for caller in asked)  # a digest


def test_a_key_that_nobody_asked_for_says_nothing(serve: Serve, asked: list[str]) -> None:
    app = serve()
    for key in ("a", "b"):
        ask(app, "/prompt", key)
    assert asked[0] == asked[1]
