"""What OpenAI's and Ollama's routes share with /prompt, and where their forms differ."""

from pathlib import Path
from typing import Any

import pytest

from gemma_server.api import job
from testing.answers import assert_error, parse_json
from testing.waiting import wait_until
from tests.web.conftest import App, Serve
from tests.web.dialects import ask, each_route, parts_of, text_of


@each_route
def test_streamed_text_joined_is_the_whole_text(app: App, path: str) -> None:
    whole = ask(app, path, stream=False)
    streamed = parts_of(ask(app, path, stream=True))
    assert whole.json is not None
    assert "".join(map(text_of, streamed)) == text_of(whole.json) != ""
    assert whole.json["timings"]["compile_ms"] == 0
    assert set(streamed[-1]["timings"]) == set(whole.json["timings"])
    assert "decode;dur=" in whole.headers["Server-Timing"]


@each_route
def test_no_chunk_has_a_key_for_errors(app: App, path: str) -> None:
    """openai-go ends a stream at one, null or not."""
    for document in parts_of(ask(app, path, stream=True)):
        assert "error" not in document


@each_route
def test_a_long_wait_has_signs_of_life(
    serve: Serve, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "KEEPALIVE_S", 0.1)
    app = serve(step_s=0.25)
    response = ask(app, path, stream=True)
    parts = parts_of(response)
    if response.mimetype == "application/x-ndjson":
        assert "" in map(text_of, parts[:-1])
    else:
        assert response.data.startswith(b": ping\n\n")
    assert "hello" in "".join(map(text_of, parts)) or "Hi" in "".join(map(text_of, parts))


@each_route
def test_a_failure_in_mid_stream_is_told_and_breaks_the_body(serve: Serve, path: str) -> None:
    app = serve(fail_at=4)
    response = ask(app, path, stream=True)
    sent: list[bytes] = []
    with pytest.raises(BrokenPipeError):
        sent.extend(response.iter_encoded())
    body = b"".join(sent)
    last = body.rstrip().rpartition(b"\n")[2].removeprefix(b"data: ")
    error = parse_json(last)["error"]
    message = error if path.startswith("/api/") else error["message"]
    assert message.startswith("the engine died")
    assert b"[DONE]" not in body
    assert app.deaths


@each_route
def test_another_model_is_404(app: App, path: str) -> None:
    response = ask(app, path, model="other")
    if path.startswith("/api/"):
        assert (response.status_code, response.json) == (404, {"error": "model 'other' not found"})
    else:
        assert_error(response, 404, "model_not_found", "model")


@each_route
def test_while_loading_it_is_503_and_worth_a_retry(serve: Serve, path: str) -> None:
    response = ask(serve(loading=True), path)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    assert response.headers["X-Should-Retry"] == "true"
    assert response.json is not None
    is_text = isinstance(response.json["error"], str)
    assert is_text == path.startswith("/api/")


@each_route
def test_leaving_a_stream_frees_the_slot(serve: Serve, path: str) -> None:
    app = serve(step_s=0.05)
    response = ask(app, path, stream=True)
    next(iter(response.iter_encoded()))
    assert app.engine.stats().active == 1
    response.close()
    wait_until(lambda: app.engine.stats().active == 0)


def test_leaving_a_stream_of_several_choices_frees_all_slots(serve: Serve) -> None:
    app = serve(slots=4, step_s=0.05)
    response = ask(app, "/v1/completions", stream=True, n=3)
    next(iter(response.iter_encoded()))
    assert app.engine.stats().active == 3
    response.close()
    wait_until(lambda: app.engine.stats().active == 0)


def test_an_operator_s_limit_holds_on_every_route(serve: Serve) -> None:
    app = serve(max_steps=3)
    cases: dict[str, dict[str, Any]] = {
        "/v1/completions": {"max_tokens": 4},
        "/v1/chat/completions": {"max_completion_tokens": 4},
        "/api/generate": {"options": {"num_predict": 4}},
    }
    for path, fields in cases.items():
        response = ask(app, path, **fields)
        assert response.status_code == 400
        assert "this server's limit is 3" in response.get_data(as_text=True)
    whole = ask(app, "/api/chat", stream=False).json
    assert whole is not None
    assert (whole["eval_count"], whole["done_reason"]) == (3, "length")


def test_the_root_tells_programs_and_people_what_runs(app: App) -> None:
    response = app.client.get("/")
    assert (response.mimetype, response.data) == ("text/plain", b"Ollama is running")
    assert app.client.head("/").status_code == 200
    page = app.client.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.mimetype == "text/html"
    assert "POST /v1/chat/completions" in page.get_data(as_text=True)


def test_the_version_is_that_of_the_ollama_whose_client_is_tested(app: App) -> None:
    required = (Path(__file__).parents[2] / "clients" / "compat" / "go.mod").read_text()
    version = app.client.get("/api/version").json
    assert version is not None
    assert f"github.com/ollama/ollama v{version['version']}\n" in required


def test_an_unknown_path_below_api_has_ollama_s_error(app: App) -> None:
    response = app.client.post("/api/pull", json={"model": "x"})
    assert response.status_code == 404
    assert response.json is not None
    assert isinstance(response.json["error"], str)
