"""/echo, health, readiness, metrics and request ids."""

import json
from typing import Any

import pytest

from testing.answers import assert_error, assert_error_form, parse_json
from tests.web.conftest import App, Serve


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -1.5, 1e300, 2**70, -(10**4000), "", "text", "a\0b", "né 𝛼"),
        *([], {}, [[]], [None, 1, "x", {"y": []}], {"": 1, "b": 2, "a": 3, "prompt": "x"}),
        *("\ud800", {"\udfff": "\ud800"}, "<script>", "x" * 100_000),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_echo_gives_back_any_json(app: App, value: Any) -> None:
    response = app.post(json.dumps({"prompt": value}).encode(), "/echo")
    assert response.status_code == 200
    assert response.mimetype == "application/json"
    assert parse_json(response.data) == {"echo_prompt": value}


def test_echo_of_a_number_beyond_floats_is_no_broken_json(app: App) -> None:
    response = app.post(b'{"prompt": [1e999, -1e999]}', "/echo")
    assert response.status_code in (200, 400)
    parse_json(response.data)


def test_echo_never_touches_the_engine(serve: Serve) -> None:
    app = serve()
    app.client.post("/echo", json={"prompt": "x"})
    assert app.engine.stats().steps == 0


@pytest.mark.parametrize("given", ["a", "abc-1.2_3", "x" * 64])
def test_a_given_request_id_comes_back(app: App, given: str) -> None:
    headers = {"X-Request-Id": given}
    assert app.prompt("x", headers=headers).headers["X-Request-Id"] == given
    error = assert_error(app.client.get("/no", headers=headers), 404, "not_found")
    assert error["request_id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "é", "<x>", 'a"b', "a/b", "a,b"])
def test_a_missing_or_odd_request_id_is_replaced(app: App, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    ids = {app.client.get("/healthz", headers=headers).headers["X-Request-Id"] for _ in "ab"}
    assert len(ids) == 2
    assert all(len(new) == 32 and new.isalnum() for new in ids)


def test_every_answer_has_a_request_id(app: App) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/no", "/prompt"):
        assert app.client.get(path).headers.getlist("X-Request-Id") != []
    assert app.prompt("x", stream=True).headers["X-Request-Id"]


def test_readyz_follows_the_model_from_loading_to_draining(serve: Serve) -> None:
    app = serve(loading=True)
    [version] = app.models.registry.versions()
    version.at("loading weights", 0.25)
    response = app.client.get("/readyz")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    expected = {"status": "loading", "stage": "loading weights", "progress": 0.25, "model": "fake"}
    assert response.json == expected

    ready = serve()
    response = ready.client.get("/readyz")
    assert response.status_code == 200
    assert response.json is not None
    assert (response.json["status"], response.json["model"]) == ("ready", "fake")

    ready.models.drain()
    response = ready.client.get("/readyz")
    assert response.status_code == 503
    assert response.json is not None
    assert response.json["status"] == "draining"


def test_healthz_answers_in_every_state(serve: Serve) -> None:
    for app in (serve(loading=True), serve()):
        assert app.client.get("/healthz").json == {"status": "ok"}
        app.models.drain()
        assert app.client.get("/healthz").json == {"status": "ok"}


def test_metrics_count_what_happened(serve: Serve) -> None:
    app = serve(slots=3)
    app.prompt("hello", sampling_steps=3)
    app.prompt("hey", stream=True).get_data()
    app.prompt("")
    app.client.get("/prompt")
    app.client.get("/some/path")
    app.client.get("/another/path")
    series = app.metrics()
    expected = {
        'gemma_requests_total{route="/prompt",status="200"}': 2,
        'gemma_requests_total{route="/prompt",status="400"}': 1,
        'gemma_requests_total{route="unknown",status="404"}': 2,
        'gemma_requests_total{route="unknown",status="405"}': 1,
        "gemma_prompt_tokens_total": 6 + 4,
        "gemma_completion_tokens_total": 3 + 4,
        "gemma_tokens_drawn_total": 3 + 4,
        "gemma_steps_total": 3 + 4,
        "gemma_time_to_first_token_seconds_count": 2,
        "gemma_request_seconds_count": 2,
        "gemma_slots": 3,
        "gemma_slots_busy": 0,
        "gemma_queue_requests": 0,
        "gemma_compilations_total": 0,
        "gemma_ready": 1,
    }
    assert {name: series[name] for name in expected} == expected


def test_metrics_show_busy_slots_and_the_line(serve: Serve) -> None:
    app = serve(slots=1)
    app.occupy(4)
    series = app.metrics()
    assert (series["gemma_slots_busy"], series["gemma_queue_requests"]) == (1, 3)


def test_metrics_are_in_the_text_format_and_all_ours(app: App) -> None:
    response = app.client.get("/metrics")
    assert response.content_type.startswith("text/plain; version=")
    assert all(name.startswith("gemma_") for name in app.metrics())
    assert not any("created" in name for name in app.metrics())


def test_metrics_work_while_loading_and_draining(serve: Serve) -> None:
    app = serve(loading=True)
    assert app.metrics()["gemma_ready"] == 0
    app = serve()
    app.models.drain()
    assert app.metrics()["gemma_ready"] == 0


def test_a_bug_is_a_500_that_tells_nothing(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fall_over(**in_path: str) -> str:
        raise KeyError("a secret")

    monkeypatch.setitem(app.client.application.view_functions, "health", fall_over)
    response = app.client.get("/healthz")
    error = assert_error_form(response)
    assert (response.status_code, error["type"]) == (500, "server_error")
    assert "secret" not in response.get_data(as_text=True)
    assert error["request_id"] in caplog.text
