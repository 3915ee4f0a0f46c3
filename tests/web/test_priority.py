"""What a client says of a request's priority decides when it gets a slot, in every dialect."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gemma_server.engine.embedding import EmbeddingEngine
from gemma_server.engine.engine import Engine
from testing.answers import assert_error, parse_json
from testing.waiting import wait_until
from tests.web.conftest import App, Serve
from tests.web.dialects import ROUTES, each_route, parts_of
from tests.web.test_embeddings import OLDER, OLLAMA, OPENAI, Embedding, Make, make

__all__ = ["make"]  # a fixture

PREDICT = "/v1/models/fake:predict"
BODIES: dict[str, dict[str, Any]] = {**ROUTES, PREDICT: {"instances": ["hello"]}}
OPENAI_S = ["/v1/completions", "/v1/chat/completions"]


@pytest.fixture
def waited_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the requests that reached an engine."""
    found: list[str] = []

    def watch(kind: Any) -> None:
        submit = kind.submit

        def noted(self: Any, *args: Any, priority: str, **more: Any) -> Any:
            found.append(priority)
            return submit(self, *args, priority=priority, **more)

        monkeypatch.setattr(kind, "submit", noted)

    watch(Engine)
    watch(EmbeddingEngine)
    return found


def post(app: App | Embedding, path: str, header: str | None = None, **fields: Any) -> Any:
    headers = {} if header is None else {"X-Priority": header}
    return app.client.post(path, json={**BODIES.get(path, {}), **fields}, headers=headers)


@pytest.mark.parametrize("path", BODIES)
def test_the_header_says_it_on_every_route_that_generates(
    app: App, waited_in: list[str], path: str
) -> None:
    for priority in ("batch", "interactive", None):
        assert post(app, path, priority).status_code == 200
    assert waited_in == ["batch", "interactive", "interactive"]


@pytest.mark.parametrize("path", [OPENAI, OLLAMA, OLDER])
def test_and_on_every_route_that_embeds(make: Make, waited_in: list[str], path: str) -> None:
    embedding = make()
    body = {"prompt": "a"} if path == OLDER else {"input": "a"}
    assert post(embedding, path, "batch", model="fake", **body).status_code == 200
    assert waited_in == ["batch"]
    response = post(embedding, path, "urgent", model="fake", **body)
    assert response.status_code == 400
    assert "X-Priority: 'urgent' is not interactive or batch" in response.text


@each_route
def test_another_word_is_refused_by_name(app: App, path: str) -> None:
    response = post(app, path, "urgent")
    assert response.status_code == 400
    assert "X-Priority: 'urgent' is not interactive or batch" in response.text


def test_a_body_goes_before_the_header(app: App, waited_in: list[str]) -> None:
    post(app, "/prompt", "batch", priority="interactive")
    post(app, "/prompt", "interactive", priority="batch")
    post(app, "/prompt", "batch", priority=None)
    assert waited_in == ["interactive", "batch", "batch"]
    assert_error(post(app, "/prompt", priority="urgent"), 400, "invalid_value", "priority")


@pytest.mark.parametrize("path", OPENAI_S)
@pytest.mark.parametrize(
    ("tier", "header", "expected", "told"),
    [
        ("flex", None, "batch", "flex"),
        ("flex", "interactive", "batch", "flex"),
        ("default", "batch", "interactive", "default"),
        ("priority", None, "interactive", "default"),
        ("auto", "batch", "batch", "flex"),
        ("auto", None, "interactive", "default"),
    ],
)
def test_openai_s_tiers(
    app: App, waited_in: list[str], path: str, tier: str, header: str, expected: str, told: str
) -> None:
    response = post(app, path, header, service_tier=tier)
    assert parse_json(response.data)["service_tier"] == told
    streamed = parts_of(post(app, path, header, service_tier=tier, stream=True))
    assert {part["service_tier"] for part in streamed} == {told}
    assert waited_in == [expected] * 2


@pytest.mark.parametrize("path", OPENAI_S)
def test_an_unknown_tier_is_refused_and_without_one_none_is_told(app: App, path: str) -> None:
    response = post(app, path, service_tier="express")
    assert_error(response, 400, "invalid_value", "service_tier")
    assert "service_tier" not in parse_json(post(app, path).data)


def test_an_instance_has_no_priority_of_its_own(app: App) -> None:
    response = post(app, PREDICT, instances=[{"prompt": "a", "priority": "batch"}])
    assert response.status_code == 400
    assert parse_json(response.data)["error"].startswith("instances[0].priority: the header")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def test_interactive_requests_overtake_a_batch(serve: Serve, pool: ThreadPoolExecutor) -> None:
    app = serve(slots=1)
    app.occupy(1)
    asked = []
    for prompt, header in (("b", "batch"), ("c", "batch"), ("i", None)):
        asked.append(pool.submit(post, app, "/prompt", header, prompt=prompt))
        wait_until(lambda: app.engine.stats().queued == len(asked))
    app.runner.open.set()
    assert [each.result().status_code for each in asked] == [200] * 3
    order = [prompt[-1] - app.runner.first_byte for prompt in app.runner.prompts[-3:]]
    assert bytes(order) == b"ibc"
