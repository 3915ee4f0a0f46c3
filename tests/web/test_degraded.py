"""Answers are cut short while the queue fills, and every dialect says so."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from werkzeug.test import TestResponse

from gemma_server.engine.request import Request
from testing.answers import parse_json
from testing.waiting import wait_until
from tests.web.conftest import App, Serve
from tests.web.dialects import ROUTES, parts_of

PREDICT = "/v1/models/fake:predict"
STEPS = 3
TOLD = f"sampling_steps={STEPS}"
HALF = 2  # requests that wait, of four places


@pytest.fixture(scope="module")
def app(serve: Serve) -> App:
    """From half a queue on, an answer has few tokens."""
    return serve(slots=1, max_queue=4, degrade_at=0.5, degrade_to=STEPS)


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


def ask(app: App, pool: ThreadPoolExecutor, path: str, waiting: int, **fields: Any) -> TestResponse:
    """The answer to a request that came while so many others waited."""
    app.occupy(1 + waiting)
    body = {"instances": ["hello"]} if path == PREDICT else ROUTES[path]

    def post() -> TestResponse:
        response = app.client.post(path, json={**body, **fields})
        assert response.data
        response.close()
        return response

    answer = pool.submit(post)
    wait_until(lambda: app.engine.stats().queued > waiting)
    app.runner.open.set()
    response = answer.result()
    wait_until(lambda: app.engine.stats().active == 0)
    return response


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (PREDICT, {}),
        *((path, {"stream": stream}) for path in ROUTES for stream in (False, True)),
    ],
)
def test_every_dialect_says_so(
    app: App, pool: ThreadPoolExecutor, path: str, fields: dict[str, Any]
) -> None:
    before = app.metrics()
    whole = ask(app, pool, path, HALF - 1, **fields)
    assert (whole.status_code, whole.headers.get("X-Degraded")) == (200, None)
    between = app.metrics()
    cut = ask(app, pool, path, HALF, **fields)
    assert (cut.status_code, cut.headers.get("X-Degraded")) == (200, TOLD)
    assert '"length"' in cut.text
    after = app.metrics()
    tokens = "gemma_completion_tokens_total"
    assert between[tokens] - before[tokens] > STEPS == after[tokens] - between[tokens]
    degraded = "gemma_degraded_total"
    assert between[degraded] - before[degraded] == 0
    assert after[degraded] - between[degraded] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_of_prompt_tells_it_too(
    app: App, pool: ThreadPoolExecutor, stream: bool
) -> None:
    for waiting, told in ((0, None), (HALF, {"sampling_steps": STEPS})):
        answer = ask(app, pool, "/prompt", waiting, stream=stream)
        last = parts_of(answer)[-1] if stream else parse_json(answer.data)
        assert last.get("degraded") == told


def test_who_asked_for_no_more_is_told_nothing(app: App, pool: ThreadPoolExecutor) -> None:
    for fields in ({"sampling_steps": STEPS}, {"prompt": ["a", "b"], "sampling_steps": 1}):
        answer = ask(app, pool, "/prompt", HALF, **fields)
        assert "X-Degraded" not in answer.headers
        assert "degraded" not in parse_json(answer.data)


def test_json_that_was_cut_ends_as_what_is_too_long_does(
    app: App, pool: ThreadPoolExecutor
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    answer = parse_json(ask(app, pool, "/prompt", HALF, response_schema=schema).data)
    assert (answer["finish_reason"], answer["degraded"]) == ("length", {"sampling_steps": STEPS})


def test_the_prompt_tokens_of_those_that_wait_count_as_their_number_does(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    """One request of 5,000 tokens is half of what may wait."""
    app = serve(slots=1, context_length=8192, degrade_at=0.5, degrade_to=STEPS)
    app.occupy(1)
    app.engine.submit([Request(tuple([2] * 5000), 1)])
    answer = pool.submit(app.prompt, "hello")
    wait_until(lambda: app.engine.stats().queued == 2)
    app.runner.open.set()
    assert answer.result().headers["X-Degraded"] == TOLD


def test_without_the_setting_nothing_is_cut(serve: Serve, pool: ThreadPoolExecutor) -> None:
    app = serve(slots=1, max_queue=4)
    assert "X-Degraded" not in ask(app, pool, "/prompt", 3).headers
