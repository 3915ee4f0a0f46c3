"""What a key or a model may use in a minute, in every dialect, and that nothing of it leaks."""

from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from testing.answers import assert_error, parse_json
from testing.waiting import wait_until
from tests.web.conftest import App, Serve
from tests.web.dialects import ROUTES, ask, each_route
from tests.web.test_embeddings import OLDER, OLLAMA, OPENAI, Make, make

__all__ = ["make"]  # a fixture

PREDICT = "/v1/models/fake:predict"
MANY = 10_000


def post(app: App, path: str, key: str | None = None, **fields: Any) -> TestResponse:
    body = {"instances": ["hello"]} if path == PREDICT else ROUTES[path]
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return app.client.post(path, json={**body, **fields}, headers=headers)


def used(app: App) -> tuple[int, int]:
    """How many requests and tokens are gone from the buckets of the model."""
    loaded = app.models.registry.first()
    assert loaded is not None
    requests, tokens = (bucket.per_minute - bucket.level() for bucket in loaded.rate_limit.buckets)
    return round(requests), round(tokens)


def completed(app: App) -> int:
    """How many tokens the metrics say."""
    found = app.metrics()
    return int(found["gemma_prompt_tokens_total"] + found["gemma_completion_tokens_total"])


@pytest.mark.parametrize("path", [*ROUTES, PREDICT])
def test_a_model_takes_so_many_requests_in_every_dialect(serve: Serve, path: str) -> None:
    app = serve(requests_per_minute=2)
    assert [post(app, path).status_code for _ in range(3)] == [200, 200, 429]
    refused = post(app, path)
    assert refused.headers["Retry-After"] == "30"
    assert refused.headers["X-Should-Retry"] == "true"
    message = (
        "this model has 2 requests a minute (--requests-per-minute): 0 are left, and this request "
        "takes 1; try again in 30 s"
    )
    if path.startswith(("/prompt", "/v1/co", "/v1/ch")):
        error = assert_error(refused, 429, "rate_limited")
        assert (error["type"], error["message"]) == ("rate_limit_error", message)
    else:
        assert parse_json(refused.data) == {"error": message}
    assert app.metrics()['gemma_rejected_total{reason="model_requests"}'] == 2


@each_route
def test_what_can_never_fit_is_refused_as_such(serve: Serve, path: str) -> None:
    app = serve(tokens_per_minute=8)
    refused = ask(app, path)
    assert refused.status_code == 400
    assert "this model has 8 a minute (--tokens-per-minute)" in refused.text
    assert "Retry-After" not in refused.headers
    if "/api/" not in path:
        assert_error(refused, 400, "exceeds_rate_limit")


def test_each_key_has_its_own(serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    app = serve(api_key_file=keys, key_requests_per_minute=3, key_tokens_per_minute=150)
    codes = [post(app, "/prompt", key).status_code for key in ("one", "one", "two", "two")]
    assert codes == [200] * 4  # 134 tokens each at first, of which 12 are used
    refused = post(app, "/prompt", "one")
    error = assert_error(refused, 429, "rate_limited")
    assert "this API key has 150 tokens a minute (--key-tokens-per-minute): 12" in error["message"]
    assert int(refused.headers["Retry-After"]) in (3, 4)
    assert post(app, "/prompt", "one", sampling_steps=10).status_code == 200
    error = assert_error(post(app, "/prompt", "one", sampling_steps=10), 429, "rate_limited")
    assert "3 requests a minute (--key-requests-per-minute)" in error["message"]
    assert app.client.get("/v1/models", headers={"Authorization": "Bearer one"}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@each_route
def test_what_was_not_generated_is_given_back(serve: Serve, path: str, stream: bool) -> None:
    app = serve(requests_per_minute=9, tokens_per_minute=MANY)
    answer = ask(app, path, stream=stream)
    assert answer.data
    answer.close()
    assert used(app) == (1, completed(app))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/prompt", {"prompt": ["a", "bcd", "x" * 40]}),
        ("/v1/completions", {"prompt": ["a", "bcd"], "n": 3, "max_tokens": 2}),
        ("/v1/chat/completions", {"n": 2}),
        (PREDICT, {"instances": ["a", {"prompt": "bcd", "sampling_steps": 1}]}),
    ],
)
def test_all_of_a_list_is_charged_as_one_request(
    serve: Serve, path: str, fields: dict[str, Any]
) -> None:
    app = serve(requests_per_minute=9, tokens_per_minute=MANY)
    assert post(app, path, **fields).status_code == 200
    assert used(app) == (1, completed(app))
    once = completed(app)
    small = serve(tokens_per_minute=once - 1)
    assert "exceeds_rate_limit" in post(small, path, **fields).text or path == PREDICT
    assert post(small, path, **fields).status_code == 400


def test_what_a_later_check_refuses_costs_nothing(serve: Serve) -> None:
    app = serve(slots=1, max_queue=0, requests_per_minute=9, tokens_per_minute=MANY)
    app.occupy(1)
    for path in ROUTES:
        assert ask(app, path).status_code == 429
    assert app.prompt(["a"] * 9).status_code == 400  # more than can ever be taken
    assert used(app) == (0, 0)
    assert app.metrics()['gemma_rejected_total{reason="queue"}'] == len(ROUTES)


def test_what_is_given_up_costs_what_it_had(serve: Serve) -> None:
    app = serve(slots=1, requests_per_minute=9, tokens_per_minute=MANY)
    app.occupy(1)
    late = app.prompt("hello", headers={"X-Request-Timeout-Ms": "50"})
    assert_error(late, 504, "deadline")
    assert used(app) == (1, 6)  # it never had a slot: only its prompt counts
    app.runner.open.set()
    wait_until(lambda: app.engine.stats().active == 0)
    stream = app.prompt("y" * 100, stream=True)  # whole by now; nobody reads it
    stream.close()
    assert used(app)[0] == 2
    wait_until(lambda: app.engine.stats().active == 0)
    assert 6 + 101 < used(app)[1] <= 6 + 101 + 101


def test_what_fails_costs_what_it_had(serve: Serve) -> None:
    app = serve(requests_per_minute=9, tokens_per_minute=MANY, fail_at=3)
    assert app.prompt("hello").status_code == 500
    assert used(app) == (1, 6 + 2)


@pytest.mark.parametrize("path", [OPENAI, OLLAMA, OLDER])
def test_embeddings_cost_their_prompts(make: Make, path: str) -> None:
    embedding = make(tokens_per_minute=20)
    field = "prompt" if path == OLDER else "input"
    codes = [embedding.ask(path, model="fake", **{field: "hello"}).status_code for _ in range(3)]
    assert codes == [200, 200, 429]  # of 7 tokens each
    refused = embedding.ask(path, model="fake", **{field: "x" * 30})
    assert refused.status_code == 400
    assert "this model has 20 a minute (--tokens-per-minute)" in refused.text
