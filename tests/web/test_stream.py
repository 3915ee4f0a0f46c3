"""POST /prompt with `stream`: the same text in pieces, and ends that nobody can misread."""

from typing import Any

import pytest
from werkzeug.test import TestResponse

from testing.answers import DRAFTS, STAGES, assert_error, error_inside, parse_json, sse_events
from testing.waiting import wait_until
from tests.web.conftest import App, Serve


def _broken_stream(response: TestResponse) -> tuple[str, dict[str, Any]]:
    """The text and the error event of a stream whose body must then break."""
    chunks: list[bytes] = []
    with pytest.raises(BrokenPipeError):
        chunks.extend(response.response)  # type: ignore[arg-type]
    *events, rest = b"".join(chunks).decode().split("\n\n")
    assert rest == ""
    assert "[DONE]" not in events
    *pieces, failure = [parse_json(event.removeprefix("data: ")) for event in events]
    error_form = error_inside(failure, response.headers["X-Request-Id"])
    return "".join(piece["response"] for piece in pieces), error_form


def test_a_stream_is_pieces_then_a_summary_then_done(app: App) -> None:
    response = app.prompt("hey", stream=True)
    assert response.status_code == 200
    assert response.content_type == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Request-Id"]
    *pieces, last = sse_events(response.data)
    assert pieces == [{"response": "h"}, {"response": "e"}, {"response": "y"}]
    assert set(last.pop("timings")) == STAGES | DRAFTS
    assert last == {
        "response": "",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 4, "completion_tokens": 4, "cached_tokens": 0},
        "model_version": "1",
    }


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "hello"},
        {"prompt": "né 𝛼€ \0 <end_of_turn> never"},
        {"prompt": "line\nline\r\n\ndata: [DONE]\n\n"},
        {"prompt": "hello", "stop": ["llo", "lo"]},
        {"prompt": "hello world", "stop": "wz"},
        {"prompt": "hello", "stop": "h"},
        {"prompt": "half€", "sampling_steps": 6},
        {"prompt": "hello", "ignore_eos": True, "sampling_steps": 30},
        {"prompt": "hello", "temperature": 2, "seed": 5},
        {"prompt": "x" * 250},
    ],
)
def test_a_stream_joined_is_the_unstreamed_answer(app: App, body: dict[str, Any]) -> None:
    whole = app.prompt(**body).json
    assert whole is not None
    *pieces, last = sse_events(app.prompt(**body, stream=True).data)
    assert all(list(piece) == ["response"] for piece in pieces)
    assert "" not in [piece["response"] for piece in pieces]
    assert "".join(piece["response"] for piece in pieces) == whole["response"]
    whole["usage"]["cached_tokens"] = last["usage"]["cached_tokens"]  # it came first
    for field in ("finish_reason", "usage"):
        assert last[field] == whole[field]


def test_no_part_of_a_stop_string_is_ever_shown(app: App) -> None:
    response = app.prompt("abcSTabSTOP more", stop=["STOP", "bSTx"], stream=True)
    *pieces, last = sse_events(response.data)
    # What may still become a stop string is held back, and comes out whole.
    assert [piece["response"] for piece in pieces] == ["a", "bc", "STa", "b"]
    assert last["usage"]["completion_tokens"] == len("abcSTabSTOP")


def test_stream_false_is_no_stream(app: App) -> None:
    response = app.prompt("x", stream=False)
    assert response.json is not None
    assert response.json["response"] == "x"


@pytest.mark.parametrize("prompt", [["a"], ["a", "b"]])
def test_a_list_cannot_be_streamed(app: App, prompt: list[str]) -> None:
    assert_error(app.prompt(prompt, stream=True), 400, "invalid_value", "stream")


def test_what_is_refused_before_the_first_event_is_a_plain_error(serve: Serve) -> None:
    app = serve(slots=1, max_queue=0, context_length=32)
    too_long = app.prompt("x" * 40, sampling_steps=1, stream=True)
    assert_error(too_long, 400, "context_length_exceeded", "prompt")
    app.occupy(1)
    assert_error(app.prompt("x", sampling_steps=1, stream=True), 429, "overloaded")
    app.models.drain()
    assert_error(app.prompt("x", stream=True), 503, "draining")


def test_leaving_a_stream_frees_its_slot_at_once(serve: Serve) -> None:
    app = serve(step_s=0.02)
    response = app.prompt("x" * 200, stream=True)
    assert app.engine.stats().active == 1
    response.close()
    wait_until(lambda: app.engine.stats().active == 0, timeout_s=1)


def test_an_engine_that_dies_ends_the_stream_with_an_error_event_and_a_broken_body(
    serve: Serve,
) -> None:
    app = serve(fail_at=4)
    text, error = _broken_stream(app.prompt("hello", stream=True))
    assert text == "hel"
    assert (error["code"], error["type"]) == ("generation_failed", "server_error")
    wait_until(lambda: len(app.deaths) == 1)


def test_a_deadline_cuts_a_stream_with_an_error_event_after_partial_text(serve: Serve) -> None:
    app = serve(step_s=0.02)
    headers = {"X-Request-Timeout-Ms": "300"}
    response = app.prompt("x" * 200, stream=True, headers=headers)
    text, error = _broken_stream(response)
    assert text == "x" * len(text)
    assert 1 <= len(text) <= 16
    assert error["code"] == "deadline"
    wait_until(lambda: app.engine.stats().active == 0, timeout_s=1)


def test_stopping_the_engine_ends_a_stream_with_an_error_event(serve: Serve) -> None:
    app = serve(step_s=0.02)
    response = app.prompt("x" * 200, stream=True)
    app.engine.stop()
    _, error = _broken_stream(response)
    assert error["code"] == "draining"
