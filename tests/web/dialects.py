"""The routes that generate, whatever their dialect: one body each, and one way to read answers."""

import json
from typing import Any

import pytest
from werkzeug.test import TestResponse

from testing.answers import parse_json, sse_events
from tests.web.conftest import App

PROMPT: dict[str, Any] = {"model": "fake", "prompt": "hello", "temperature": 0}
GENERATE: dict[str, Any] = {
    "model": "fake",
    "prompt": "hello",
    "raw": True,
    "options": {"temperature": 0},
}
MESSAGES = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
ROUTES: dict[str, dict[str, Any]] = {
    "/prompt": {"prompt": "hello"},
    "/v1/completions": PROMPT,
    "/v1/chat/completions": {**MESSAGES, "temperature": 0},
    "/api/generate": GENERATE,
    "/api/chat": {**MESSAGES, "options": {"temperature": 0}},
}
each_route = pytest.mark.parametrize("path", ROUTES)


def ask(app: App, path: str, **fields: Any) -> TestResponse:
    return app.post(json.dumps({**ROUTES[path], **fields}).encode(), path)


def parts_of(response: TestResponse) -> list[dict[str, Any]]:
    """The documents of a stream, whatever its form, without signs of life."""
    if response.mimetype == "application/x-ndjson":
        return [parse_json(line) for line in response.data.splitlines()]
    return sse_events(response.data.replace(b": ping\n\n", b""))


def text_of(document: dict[str, Any]) -> str:
    """The text in an answer or a part of one, whatever its form."""
    if "response" in document:
        return str(document["response"])
    if "message" in document:
        return str(document["message"]["content"])
    texts = [
        choice.get("text", (choice.get("message") or choice.get("delta") or {}).get("content", ""))
        for choice in document["choices"]
    ]
    return "".join(texts)
