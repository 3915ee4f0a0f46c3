"""What one request may cost: the first error ends it, and large ones wait for each other."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from gemma_server.api import heavy
from gemma_server.api.native.schema import PromptBody
from gemma_server.api.ollama.schema import ChatBody, GenerateBody
from gemma_server.api.openai.schema import ChatCompletionBody, CompletionBody
from gemma_server.api.openai.tokens import DetokenizeBody
from gemma_server.errors import Overloaded
from gemma_server.text.tokenizer import Tokenizer
from testing.answers import assert_error, assert_error_form
from testing.waiting import wait_until
from tests.web.conftest import App

WRONG: list[Any] = [[]] * 100_000
TEXT = "ab" * 400_000


@pytest.mark.parametrize(
    ("schema", "document"),
    [
        (PromptBody, {"prompt": WRONG}),
        (CompletionBody, {"prompt": WRONG}),
        (CompletionBody, {"prompt": [[1, *WRONG]]}),
        (CompletionBody, {"prompt": "x", "stop": WRONG}),
        (CompletionBody, {"prompt": "x", "stop_token_ids": WRONG}),
        (CompletionBody, {"prompt": "x", "logit_bias": {str(i): "x" for i in range(100_000)}}),
        (ChatCompletionBody, {"messages": WRONG}),
        (ChatCompletionBody, {"messages": [{"role": "user", "content": WRONG}]}),
        (DetokenizeBody, {"tokens": WRONG}),
        (GenerateBody, {"model": "x", "context": WRONG}),
        (ChatBody, {"model": "x", "messages": WRONG}),
    ],
)
def test_the_first_wrong_item_ends_the_check(schema: type[BaseModel], document: Any) -> None:
    with pytest.raises(ValidationError) as found:
        schema.model_validate(document, strict=True)
    assert found.value.error_count() < 20


def test_the_first_unknown_field_ends_it_too(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromptBody, "model_validate", lambda *_, **__: pytest.fail("collected"))
    body = {f"field{number}": 1 for number in range(50_000)}
    response = app.client.post("/prompt", json={"prompt": "x", **body})
    assert_error(response, 400, "unknown_field", "field0")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/prompt", {"prompt": TEXT}),
        ("/prompt", {"prompt": ["x", TEXT]}),
        ("/v1/completions", {"prompt": TEXT}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT[:400]}] * 2000}),
        ("/api/generate", {"model": "fake", "prompt": TEXT}),
        ("/api/generate", {"model": "fake", "prompt": TEXT, "raw": True}),
        ("/api/chat", {"model": "fake", "messages": [{"role": "user", "content": TEXT}]}),
    ],
)
def test_what_cannot_fit_is_refused_without_being_encoded(
    app: App, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    encode = Tokenizer.encode_literal

    def only_short(self: Tokenizer, text: str) -> list[int]:
        assert len(text) < 1000
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode_literal", only_short)
    response = app.client.post(path, json=body)
    assert response.status_code == 400
    if not path.startswith("/api/"):
        error = assert_error_form(response)
        assert error["code"] == "context_length_exceeded"
        assert error["prompt_tokens"] > 50_000
        assert error["limit"] == app.engine.longest_prompt
        assert "at least" in error["message"]


def test_what_may_be_truncated_is_encoded_and_cut(app: App) -> None:
    body = {"prompt": TEXT, "truncate": True, "max_tokens": 1}
    document = app.client.post("/v1/completions", json=body).json
    assert document is not None
    assert document["truncated_tokens"] > 100_000


def test_large_pieces_are_one_at_a_time_and_small_ones_do_not_wait() -> None:
    at_work, most, go = 0, 0, threading.Event()

    def work() -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        go.wait(10)
        at_work -= 1

    with ThreadPoolExecutor(16) as threads:
        waiting = [threads.submit(heavy.run, 1 << 20, work) for _ in range(16)]
        wait_until(lambda: at_work == 1)
        assert heavy.run(100, lambda: "at once") == "at once"
        go.set()
        for piece in waiting:
            piece.result(10)
    assert most == 1


def test_more_than_can_wait_are_refused_for_a_second(app: App) -> None:
    go = threading.Event()
    with ThreadPoolExecutor(64) as threads:
        for _ in range(heavy.MOST_WAITING):
            threads.submit(heavy.run, 1 << 20, lambda: go.wait(10))
        wait_until(lambda: heavy._waiting._value == 0)
        with pytest.raises(Overloaded):
            heavy.run(1 << 20, lambda: None)
        body = json.dumps({"prompt": "x" * 100_000})
        response = app.client.post("/echo", data=body, content_type="application/json")
        assert_error(response, 429, "overloaded")
        assert response.headers["Retry-After"] == "1"
        assert app.client.get("/healthz").status_code == 200
        go.set()
    assert heavy.run(1 << 20, lambda: "again") == "again"


def test_an_error_in_the_other_thread_is_the_caller_s(app: App) -> None:
    response = app.client.post(
        "/echo", data=b'{"prompt": ' + b"1" * 100_000, content_type="application/json"
    )
    assert_error(response, 400, "invalid_json")
