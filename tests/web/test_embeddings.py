"""The routes that embed texts, on a model without weights."""

import base64
import json
import math
import struct
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
from flask.testing import FlaskClient
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from gemma_server.api.document import write
from gemma_server.api.embedding import as_base64, shortened
from gemma_server.api.ollama.embeddings import EmbedBody
from gemma_server.api.openai.embeddings import EmbeddingsBody
from gemma_server.engine.embedding import EmbeddingLimits
from gemma_server.serving.models import Models
from gemma_server.serving.rate_limit import RateLimit
from gemma_server.settings import Settings, load_settings
from gemma_server.web.app import make_app
from testing.answers import assert_error, assert_error_form, parse_json, parse_metrics
from testing.fake_embedding import (
    WIDTH,
    FakeEmbeddingRunner,
    fake_embedding_model,
    fake_vector,
)
from testing.waiting import wait_until
from tests.web.conftest import App
from tests.web.test_foreign_fields import EMBEDDINGS, HARMLESS

BOS, EOS, FIRST_BYTE = 2, 1, 6
OPENAI, OLLAMA, OLDER = "/v1/embeddings", "/api/embed", "/api/embeddings"


def ids_of(text: str) -> list[int]:
    return [BOS, *(FIRST_BYTE + byte for byte in text.encode()), EOS]


def vector_of(text: str) -> list[float]:
    return fake_vector(ids_of(text)).tolist()


class Embedding:
    """An app whose model embeds texts."""

    def __init__(
        self, limits: EmbeddingLimits, settings: Settings, tokens_per_minute: int = 0
    ) -> None:
        self.runner = FakeEmbeddingRunner()
        self.deaths: list[BaseException] = []
        loaded = fake_embedding_model(self.runner, self.deaths.append, limits)
        limit = RateLimit("model", 0, tokens_per_minute, clock=lambda: 0.0)  # it does not refill
        self.loaded = replace(loaded, rate_limit=limit)
        self.models = Models("fake")
        self.models.registry.adopt(self.loaded)
        self.client: FlaskClient = make_app(self.models, settings).test_client()

    def ask(self, path: str, **body: Any) -> TestResponse:
        """POST the body; `timeout_ms` in it is the header of this meaning."""
        limit = body.pop("timeout_ms", None)
        headers = {} if limit is None else {"X-Request-Timeout-Ms": str(limit)}
        sent = json.dumps(body).encode()
        return self.client.post(path, data=sent, headers=headers, content_type="application/json")

    def answer(self, path: str, **body: Any) -> Any:
        """The answer of a request that is in order."""
        response = self.ask(path, **body)
        assert response.status_code == 200, response.text
        return parse_json(response.data)

    def get(self, path: str) -> Any:
        """The answer of a route that takes nothing."""
        return parse_json(self.client.get(path).data)

    def openai(self, given: Any, **more: Any) -> Any:
        """The answer of OpenAI's route."""
        return self.answer(OPENAI, input=given, **more)


Make = Callable[..., Embedding]


@pytest.fixture(scope="module")
def make() -> Iterator[Make]:
    made: list[Embedding] = []

    def make(
        *, max_queue: int = 4, max_queue_tokens: int = 1000, tokens_per_minute: int = 0
    ) -> Embedding:
        limits = EmbeddingLimits(256, max_queue, max_queue_tokens)
        made.append(Embedding(limits, load_settings(fake=True), tokens_per_minute))
        return made[-1]

    yield make
    for each in made:
        each.runner.open.set()
        each.loaded.engine.stop()
        assert each.models.leases == 0


@pytest.fixture(scope="module")
def embedding(make: Make) -> Embedding:
    return make()


def test_one_text(embedding: Embedding) -> None:
    answer = embedding.openai("hello", model="fake")
    timings = answer.pop("timings")
    assert set(timings) == {
        f"{stage}_ms" for stage in ("parse", "tokenize", "queue", "embed", "compile")
    }
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector_of("hello")}],
        "model": "fake",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (["a", "bcd"], [ids_of("a"), ids_of("bcd")]),
        (["a"], [ids_of("a")]),
        ([5, 6, 7], [[5, 6, 7]]),  # ids are taken as they are
        ([[5], [6, 7]], [[5], [6, 7]]),
        (["a", [5, 6]], [ids_of("a"), [5, 6]]),
    ],
)
def test_what_may_be_embedded(embedding: Embedding, given: Any, ids: list[list[int]]) -> None:
    answer = embedding.openai(given)
    assert [one["embedding"] for one in answer["data"]] == [fake_vector(i).tolist() for i in ids]
    assert [one["index"] for one in answer["data"]] == list(range(len(ids)))
    assert answer["usage"]["total_tokens"] == sum(map(len, ids))


@hypothesis.given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=60)
    | st.dictionaries(st.text(), st.lists(st.integers() | st.text(), max_size=40))
)
def test_an_answer_written_in_pieces_is_what_the_encoder_would_have_written(document: Any) -> None:
    encode = json.JSONEncoder(separators=(",", ":")).encode
    assert write(document, encode) == encode(document)


def test_base64_is_little_endian_float32(embedding: Embedding) -> None:
    [one] = embedding.openai("hello", encoding_format="base64")["data"]
    numbers = struct.unpack(f"<{WIDTH}f", base64.b64decode(one["embedding"]))
    assert list(numbers) == vector_of("hello")


def test_dimensions_cut_and_renormalise(embedding: Embedding) -> None:
    whole, [one] = vector_of("hello"), embedding.openai("hello", dimensions=2)["data"]
    found = one["embedding"]
    assert math.hypot(*found) == pytest.approx(1, abs=1e-6)
    assert found[0] / found[1] == pytest.approx(whole[0] / whole[1], rel=1e-5)
    assert embedding.openai("hello", dimensions=WIDTH)["data"][0]["embedding"] == whole
    refused = embedding.ask(OPENAI, input="hello", dimensions=WIDTH + 1)
    assert_error(refused, 400, "invalid_value", "dimensions")


floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-4, max_value=4)


@hypothesis.given(st.lists(floats, min_size=1, max_size=40))
def test_numbers_come_back_from_base64_to_the_bit(numbers: list[float]) -> None:
    vector = array("f", numbers)
    sent = base64.b64decode(as_base64(vector))
    assert list(struct.unpack(f"<{len(numbers)}f", sent)) == vector.tolist()


@hypothesis.given(st.lists(floats, min_size=1, max_size=40), st.data())
def test_a_cut_vector_points_the_same_way_and_has_length_1(
    numbers: list[float], data: st.DataObject
) -> None:
    dimensions = data.draw(st.integers(1, len(numbers)))
    part, vector = array("f", numbers)[:dimensions], array("f", numbers)
    found = shortened(vector, dimensions)
    assert len(found) == dimensions
    if dimensions == len(numbers):
        assert found == vector
        return
    length = math.hypot(*part)
    if length > 1e-30:
        assert math.hypot(*found) == pytest.approx(1, abs=1e-5)
        assert sum(a * b for a, b in zip(found, part, strict=True)) == pytest.approx(length)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": 7}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "float16"}, "encoding_format"),
        ({"input": [["a"]]}, "input"),
    ],
)
def test_bodies_that_are_refused(embedding: Embedding, body: Any, param: str) -> None:
    response = embedding.ask(OPENAI, **body)
    error = assert_error_form(response)
    assert (response.status_code, error["code"]) == (400, "invalid_value")
    assert error["param"].startswith(param)


def test_ids_that_are_no_tokens_are_refused_with_the_text_at_fault(embedding: Embedding) -> None:
    refused = embedding.ask(OPENAI, input=[[5], [6, 999_999]])
    assert_error(refused, 400, "invalid_value", "input[1]")


def test_a_text_that_does_not_fit_is_refused_unless_its_end_may_be_dropped(
    embedding: Embedding,
) -> None:
    long = "x" * 300
    for path, given in ((OPENAI, ["a", long]), (OPENAI, [[5], [6] * 300])):
        refused = embedding.ask(path, input=given)
        error = assert_error(refused, 400, "context_length_exceeded", "input[1]")
        assert error["limit"] == 256
    kept = [*ids_of(long)[:255], EOS]
    answer = embedding.openai(["a", long], truncate=True)
    assert answer["data"][1]["embedding"] == fake_vector(kept).tolist()
    assert answer["truncated_tokens"] == 302 - 256
    refused = embedding.ask(OLLAMA, model="fake", input=long)
    assert refused.status_code == 400
    assert "context length" in parse_json(refused.data)["error"]
    answer = embedding.answer(OLLAMA, model="fake", input=long, truncate=True)
    assert answer["embeddings"] == [fake_vector(kept).tolist()]
    assert answer["truncated_tokens"] == 302 - 256


@pytest.mark.parametrize("field", sorted(EmbeddingsBody.REFUSED))
def test_fields_that_would_change_a_vector_are_refused_by_name(
    embedding: Embedding, field: str
) -> None:
    for value in (7.25, "something", ["something"]):
        refused = embedding.ask(OPENAI, input="a", **{field: value})
        assert_error(refused, 400, "unsupported_field", field)
    for value in EmbeddingsBody.REFUSED[field]:
        assert embedding.ask(OPENAI, input="a", **{field: value}).status_code == 200


def test_every_field_of_others_is_in_one_place() -> None:
    for field in EMBEDDINGS["fields"].split():
        harmless = field in HARMLESS or field in EMBEDDINGS["harmless"].split()
        places = [field in EmbeddingsBody.model_fields, field in EmbeddingsBody.REFUSED, harmless]
        assert sum(places) == 1, field
    for field in EMBEDDINGS["ollama"].split():
        assert field in EmbedBody.model_fields, field


def test_ollama_s_route(embedding: Embedding) -> None:
    answer = embedding.answer(OLLAMA, model="fake:latest", input=["a", "bc"])
    assert answer["model"] == "fake:latest"
    assert answer["embeddings"] == [vector_of("a"), vector_of("bc")]
    assert answer["prompt_eval_count"] == 7
    assert answer["total_duration"] >= answer["load_duration"] > 0
    one = embedding.answer(OLLAMA, model="fake", input="a", dimensions=2, options={"seed": 3})
    assert len(one["embeddings"][0]) == 2
    assert embedding.ask(OLLAMA, model="fake", input="a", dimensions=9).status_code == 400


def test_ollama_s_older_route(embedding: Embedding) -> None:
    answer = embedding.answer(OLDER, model="fake", prompt="abc")
    assert answer == {"embedding": vector_of("abc")}
    assert embedding.ask(OLDER, model="fake", prompt="x" * 300).status_code == 400


def test_without_a_text_ollama_s_routes_say_that_the_model_is_loaded(embedding: Embedding) -> None:
    nothing: tuple[Any, ...] = ("", [])
    for empty in nothing:
        answer = embedding.answer(OLLAMA, model="fake", input=empty)
        assert (answer["embeddings"], answer["prompt_eval_count"]) == ([], 0)
    assert embedding.answer(OLLAMA, model="fake")["embeddings"] == []
    assert embedding.answer(OLDER, model="fake", prompt="") == {"embedding": []}
    assert embedding.ask(OLLAMA, model="fake", keep_alive=0).status_code == 400
    assert embedding.ask(OLLAMA, model="fake", input="a", keep_alive=0).status_code == 200
    too_much = embedding.ask(OLLAMA, model="fake", input="a", options={"num_ctx": 300})
    assert too_much.status_code == 400


def test_each_kind_of_model_refuses_what_the_other_does_by_name(
    embedding: Embedding, app: App
) -> None:
    for path in (OPENAI, OLLAMA, OLDER):
        body = {"model": "fake", "input": "a", "prompt": "a"}
        refused = app.post(json.dumps(body).encode(), path)
        assert refused.status_code == 400
        assert "model 'fake' generates text, it makes no embeddings" in refused.text
    message = "model 'fake' makes embeddings, it does not generate"
    chat: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "a"}]}
    prompt: dict[str, Any] = {"model": "fake", "prompt": "a"}
    for path, asked in (
        ("/prompt", prompt),
        ("/v1/completions", prompt),
        ("/v1/chat/completions", chat),
        ("/api/generate", prompt),
        ("/api/chat", chat),
    ):
        refused = embedding.ask(path, **asked)
        assert refused.status_code == 400
        assert message in refused.text
    error = assert_error(embedding.ask("/prompt", prompt="a"), 400, "wrong_kind_of_model", "model")
    assert error["type"] == "invalid_request_error"
    assert_error(embedding.ask(OPENAI, input="a", model="x"), 404, "model_not_found", "model")


def test_the_model_is_listed_and_described(embedding: Embedding) -> None:
    client, get = embedding.client, embedding.get
    assert get("/readyz")["status"] == "ready"
    for card in (get("/v1/models")["data"][0], get("/v1/models/fake")):
        assert card["max_model_len"] == 256
    assert get("/api/tags")["models"][0]["name"] == "fake"
    assert get("/api/ps")["models"][0]["context_length"] == 256
    shown = embedding.answer("/api/show", model="fake")
    assert (shown["capabilities"], shown["template"]) == (["embedding"], "")
    assert embedding.answer("/tokenize", prompt="a")["tokens"] == ids_of("a")[:2]
    before = parse_metrics(client.get("/metrics").text)
    embedding.openai("abc")
    after = parse_metrics(client.get("/metrics").text)
    grown = "gemma_prompt_tokens_total"
    assert after[grown] - before[grown] == 5
    assert after["gemma_ready"] == 1
    assert after["gemma_steps_total"] > before["gemma_steps_total"]


def test_a_busy_server_a_deadline_and_what_waits(make: Make) -> None:
    busy = make(max_queue=1)
    busy.runner.open.clear()
    threads = [threading.Thread(target=busy.openai, args=[text]) for text in ("one", "two")]
    threads[0].start()
    wait_until(lambda: len(busy.runner.steps) == 1)
    threads[1].start()
    wait_until(lambda: busy.loaded.engine.stats().queued == 1)
    refused = busy.ask(OPENAI, input="a")
    assert_error(refused, 429, "overloaded")
    assert int(refused.headers["Retry-After"]) >= 1
    assert busy.ask(OLLAMA, model="fake", input="a").status_code == 429
    busy.runner.open.set()
    for thread in threads:
        thread.join(10)
    busy.runner.open.clear()
    late = busy.ask(OPENAI, input="a", timeout_ms=100)
    assert_error(late, 504, "deadline")
    busy.runner.open.set()
    assert busy.openai("a")


def test_a_draining_server_refuses(make: Make) -> None:
    draining = make()
    draining.models.drain()
    assert_error(draining.ask(OPENAI, input="a"), 503, "draining")


def test_a_dead_engine_says_so(make: Make) -> None:
    dead = make()
    dead.runner._fail_at = 1
    assert_error(dead.ask(OPENAI, input="a"), 500, "generation_failed")
    wait_until(lambda: len(dead.deaths) == 1)
    assert_error(dead.ask(OPENAI, input="a"), 500, "generation_failed")
