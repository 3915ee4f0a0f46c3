"""How answers must look, whatever carries them."""

import json
import re
from typing import Any

from werkzeug.test import TestResponse

ERROR_TYPES = {
    "authentication_error",
    "invalid_request_error",
    "not_found_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
    "timeout_error",
    "unavailable_error",
}
DRAFTS = {"draft_tokens", "accepted_tokens"}
STAGES = {f"{stage}_ms" for stage in ("parse", "tokenize", "queue", "prefill", "decode", "compile")}
ERROR_FIELDS = {"type", "message", "param", "code", "request_id"}


def parse_json(text: str | bytes) -> Any:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def parse_metrics(exposition: str) -> dict[str, float]:
    """Prometheus' text form, by series; those of one model's version go by their names alone."""
    lines = [line for line in exposition.splitlines() if not line.startswith("#")]
    lines = [re.sub(r'\{model="[^"]*",version="\d+"\}', "", line) for line in lines]
    return {series: float(value) for series, value in (line.rsplit(" ", 1) for line in lines)}


def error_inside(document: Any, request_id: str | None) -> dict[str, Any]:
    """What is in `document`, which has the one form of an error, whatever the error."""
    assert list(document) == ["error"]
    error: dict[str, Any] = document["error"]
    numbers = {"prompt_tokens", "limit"} if error["code"] == "context_length_exceeded" else set()
    assert set(error) == ERROR_FIELDS | numbers
    assert error["type"] in ERROR_TYPES
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["code"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["request_id"] == request_id
    return error


def assert_error_form(response: TestResponse) -> dict[str, Any]:
    """The answer is an error in the one form; returns the inside."""
    assert response.mimetype == "application/json"
    return error_inside(parse_json(response.data), response.headers["X-Request-Id"])


def assert_error(
    response: TestResponse, status: int, code: str, param: str | None = None
) -> dict[str, Any]:
    """The answer is this error, in the one form; returns the inside."""
    error = assert_error_form(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    return error


def sse_events(body: bytes) -> list[Any]:
    """The documents of a whole stream, without the `[DONE]` that must end it."""
    *events, done, rest = body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [parse_json(event.removeprefix("data: ")) for event in events]
