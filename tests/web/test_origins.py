"""Which web pages may ask: what a browser says of them, and what it is told."""

import pytest

from gemma_server.errors import UsageError
from gemma_server.settings import load_settings
from testing.answers import assert_error
from tests.web.conftest import App, Serve

APP = "https://app.example"
OWN = "http://localhost"  # the test client's Host is localhost
FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "http://localhost:3000"},  # another server's page
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://["},
    {"Origin": "localhost"},
    {"Origin": f"{OWN}.evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
]
COSTLY = ["/prompt", "/echo", "/tokenize", "/v1/chat/completions", "/api/generate", "/api/show"]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_a_page_from_elsewhere_may_not_ask(
    app: App, headers: dict[str, str], content_type: str
) -> None:
    response = app.client.post(
        "/echo", data='{"prompt": 1}', headers=headers, content_type=content_type
    )
    error = assert_error(response, 403, "forbidden")
    assert "--allowed-origins" in error["message"]
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("path", COSTLY)
def test_no_route_that_costs_anything_is_open_to_it(serve: Serve, path: str) -> None:
    app = serve()
    response = app.client.post(path, json={"prompt": "x"}, headers={"Origin": APP})
    assert response.status_code == 403
    assert app.engine.stats().steps == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": OWN},
        {"Origin": OWN, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_clients_and_own_pages_may_ask(app: App, headers: dict[str, str]) -> None:
    response = app.client.post("/echo", json={"prompt": 1}, headers=headers)
    assert response.status_code == 200
    assert "Vary" not in response.headers


def test_a_link_from_elsewhere_opens_a_page(app: App) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Accept": "text/html"}
    assert app.client.get("/docs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        (APP, APP),
        (f"http://other.example, {APP}", APP),
        ("http://localhost:*", "http://localhost:3000"),
        ("https://*.example", APP),
        ("http://[::1]:*", "http://[::1]:3000"),
        ("*", APP),
        ("null", "null"),
        ("vscode-webview://*", "vscode-webview://abc"),
    ],
)
def test_an_allowed_page_asks_and_reads(serve: Serve, allowed: str, origin: str) -> None:
    client = serve(allowed_origins=allowed).client
    response = client.post("/echo", json={"prompt": 1}, headers={"Origin": origin})
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert "Origin" in response.vary
    assert "X-Request-Id" in response.headers["Access-Control-Expose-Headers"]
    wrong = client.post("/echo", json={}, headers={"Origin": origin})
    assert wrong.status_code == 400  # and the page may read why
    assert wrong.headers["Access-Control-Allow-Origin"] == origin


def test_others_stay_out_where_some_are_allowed(serve: Serve) -> None:
    client = serve(allowed_origins=APP).client
    for origin in ("https://app.example.evil", "http://app.example", "https://evil.example"):
        response = client.post("/echo", json={"prompt": 1}, headers={"Origin": origin})
        assert_error(response, 403, "forbidden")
        assert "Access-Control-Allow-Origin" not in response.headers
        assert "Origin" in response.vary


def test_a_browser_may_ask_before_without_a_key(serve: Serve, tmp_path: object) -> None:
    from pathlib import Path

    keys = Path(str(tmp_path)) / "keys"
    keys.write_text("key\n")
    client = serve(allowed_origins=APP, api_key_file=keys).client
    asked = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
        "Access-Control-Request-Private-Network": "true",
    }
    response = client.options("/v1/chat/completions", headers=asked)
    assert (response.status_code, response.data) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == APP
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert response.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
    assert response.headers["Access-Control-Allow-Private-Network"] == "true"
    other = client.options("/v1/chat/completions", headers={**asked, "Origin": "https://evil"})
    assert other.status_code == 401
    assert "Access-Control-Allow-Origin" not in other.headers


@pytest.mark.parametrize("value", ["app.example", "https://", "http://a b", "http://a/path", "x:y"])
def test_what_is_no_origin_is_refused_by_name(value: str) -> None:
    if value == "https://":
        value += " ,http://a/"
    with pytest.raises(UsageError, match=r"--allowed-origins .*no origin"):
        load_settings(allowed_origins=value)
