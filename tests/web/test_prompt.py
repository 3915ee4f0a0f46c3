"""POST /prompt, unstreamed: what it answers, and what it reports about the answer."""

import threading
from typing import Any

import pytest
from werkzeug.test import TestResponse

from gemma_server.engine.request import SamplingParams
from testing.answers import STAGES, assert_error
from testing.waiting import wait_until
from tests.web.conftest import App, Serve


def test_a_string_answers_a_string_with_usage_and_timings(app: App) -> None:
    response = app.prompt("hello")
    assert response.status_code == 200
    document = response.json
    assert document is not None
    timings = document.pop("timings")
    assert document == {
        "response": "hello",
        "finish_reason": "stop",
        # <bos> and five letters; five letters and <eos>
        "usage": {"prompt_tokens": 6, "completion_tokens": 6, "cached_tokens": 0},
        "model_version": "1",
    }
    assert (timings.pop("draft_tokens"), timings.pop("accepted_tokens")) == (0, 0)
    assert set(timings) == STAGES
    assert all(isinstance(value, float) and 0 <= value < 5000 for value in timings.values())
    header = dict(part.split(";dur=") for part in response.headers["Server-Timing"].split(", "))
    assert {f"{stage}_ms": float(ms) for stage, ms in header.items()} == timings
    assert timings["compile_ms"] == 0


def test_timings_tell_where_the_time_went(serve: Serve) -> None:
    app = serve(slots=1, step_s=0.02)
    response = app.prompt(["abc", "abc"])
    assert response.json is not None
    timings = response.json["timings"]
    # The second waits for the first: one prefill step and three decode steps.
    assert timings["queue_ms"] >= 75
    assert timings["prefill_ms"] >= 19
    assert timings["decode_ms"] >= 55


def test_a_list_answers_lists_in_order_with_summed_usage(app: App) -> None:
    prompts = ["one", "a longer one", "ü", "four", "five"]
    document = app.prompt(prompts).json
    assert document is not None
    assert document["response"] == prompts
    assert document["finish_reason"] == ["stop"] * 5
    tokens = 5 + sum(len(prompt.encode()) for prompt in prompts)
    assert document["usage"] == {
        "prompt_tokens": tokens,
        "completion_tokens": tokens,
        "cached_tokens": 0,
    }


def test_a_list_of_one_still_answers_a_list(app: App) -> None:
    document = app.prompt(["one"]).json
    assert document is not None
    assert (document["response"], document["finish_reason"]) == (["one"], ["stop"])


@pytest.mark.parametrize(
    ("fields", "text", "reason", "tokens"),
    [
        ({}, "hello", "stop", 6),
        ({"sampling_steps": 6}, "hello", "stop", 6),
        ({"sampling_steps": 5}, "hello", "length", 5),
        ({"sampling_steps": 1}, "h", "length", 1),
        ({"stop": "ll"}, "he", "stop", 4),
        ({"stop": "h"}, "", "stop", 1),
        ({"stop": "hello"}, "", "stop", 5),
        ({"stop": "lz"}, "hello", "stop", 6),
        ({"stop": "o", "sampling_steps": 5}, "hell", "stop", 5),
        ({"stop": "lo", "sampling_steps": 4}, "hell", "length", 4),
        ({"stop": []}, "hello", "stop", 6),
        ({"stop": ["zz", "o", "el"]}, "h", "stop", 3),
        ({"stop": ["llo", "lo"]}, "he", "stop", 5),
        ({"ignore_eos": True, "sampling_steps": 20}, "hello", "length", 20),
        ({"temperature": 1, "seed": 1}, "HELLO", "stop", 6),
        ({"temperature": 1, "seed": 2}, "hello", "stop", 6),
        ({"temperature": 0, "seed": 1}, "hello", "stop", 6),
        ({"temperature": 0.5, "seed": 2**64 - 1}, "HELLO", "stop", 6),
    ],
)
def test_each_option_ends_the_text_where_it_should(
    app: App, fields: dict[str, Any], text: str, reason: str, tokens: int
) -> None:
    document = app.prompt("hello", **fields).json
    assert document is not None
    assert document["response"] == text
    assert document["finish_reason"] == reason
    assert document["usage"]["completion_tokens"] == tokens


def test_turn_markers_become_their_tokens_and_end_of_turn_ends_the_answer(
    app: App,
) -> None:
    document = app.prompt("<start_of_turn>user\nhi<end_of_turn>\n").json
    assert document is not None
    assert (document["response"], document["finish_reason"]) == ("user\nhi", "stop")
    assert document["usage"]["prompt_tokens"] == 1 + 1 + 7 + 1 + 1
    assert document["usage"]["completion_tokens"] == 1 + 7 + 1


def test_typed_bos_and_eos_stay_text(app: App) -> None:
    document = app.prompt("<bos>a<eos>b").json
    assert document is not None
    assert (document["response"], document["finish_reason"]) == ("<bos>a<eos>b", "stop")
    assert document["usage"]["prompt_tokens"] == 13


@pytest.mark.parametrize("text", ["a\0b", "𝛼 é\n\t\r", "\u2028", " lead", "two  spaces", "\ufeffx"])
def test_every_text_survives_the_way_through(app: App, text: str) -> None:
    document = app.prompt(text).json
    assert document is not None
    assert document["response"] == text


def test_sampling_options_reach_the_runner(serve: Serve) -> None:
    app = serve()
    options: dict[str, Any] = {
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "seed": 2**63,
    }
    app.prompt("x", **options)
    [sampling] = app.runner.samplings
    assert sampling == SamplingParams(**options)


def test_without_a_seed_every_request_draws_its_own(serve: Serve) -> None:
    app = serve()
    app.prompt(["x"] * 8, temperature=1)
    assert len({sampling.seed for sampling in app.runner.samplings}) == 8


def test_defaults_are_greedy_with_128_steps(serve: Serve) -> None:
    app = serve(context_length=1024)
    document = app.prompt("x" * 200).json
    assert document is not None
    assert (document["response"], document["finish_reason"]) == ("x" * 128, "length")
    [sampling] = app.runner.samplings
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 0, 1, 0)


def test_prompt_and_steps_beyond_the_context_end_with_length(serve: Serve) -> None:
    document = serve(context_length=32).prompt("x" * 20, sampling_steps=32).json
    assert document is not None
    assert (document["response"], document["finish_reason"]) == ("x" * 11, "length")
    assert document["usage"] == {
        "prompt_tokens": 21,
        "completion_tokens": 11,
        "cached_tokens": 0,
    }


def test_the_longest_prompt_fits_and_one_more_token_is_refused_with_both_numbers(
    serve: Serve,
) -> None:
    app = serve(context_length=32)
    document = app.prompt("x" * 30, sampling_steps=32).json
    assert document is not None
    assert (document["response"], document["finish_reason"]) == ("x", "length")
    response = app.prompt("x" * 31, sampling_steps=32)
    error = assert_error(response, 400, "context_length_exceeded", "prompt")
    assert (error["prompt_tokens"], error["limit"]) == (32, 31)


@pytest.mark.parametrize(
    ("bad", "code"),
    [("x" * 31, "context_length_exceeded"), ("", "invalid_value"), ("\ud800", "invalid_value")],
)
def test_a_list_with_one_bad_item_is_refused_whole(serve: Serve, bad: str, code: str) -> None:
    app = serve(context_length=32)
    response = app.prompt(["a", "b", "c", bad, "e"], sampling_steps=1)
    assert_error(response, 400, code, "prompt[3]")
    assert (app.engine.stats().active, app.engine.stats().queued) == (0, 0)
    assert app.runner.samplings == []


def test_max_steps_bounds_sampling_steps(serve: Serve) -> None:
    app = serve(max_steps=10)
    assert app.prompt("x", sampling_steps=10).status_code == 200
    error = assert_error(app.prompt("x", sampling_steps=11), 400, "invalid_value", "sampling_steps")
    assert "10" in error["message"]


@pytest.mark.parametrize("settings", [{"max_steps": 10}, {"context_length": 100}])
def test_a_smaller_limit_is_the_default_of_sampling_steps_too(
    serve: Serve, settings: dict[str, int]
) -> None:
    assert serve(**settings).prompt("x").status_code == 200


def test_a_full_line_is_429_with_retry_after_and_takes_requests_again_later(serve: Serve) -> None:
    app = serve(slots=1, max_queue=1)
    app.occupy(2)
    response = app.prompt("x")
    error = assert_error(response, 429, "overloaded")
    assert error["type"] == "rate_limit_error"
    assert 1 <= int(response.headers["Retry-After"]) <= 120
    app.runner.open.set()
    wait_until(lambda: app.engine.stats().active == app.engine.stats().queued == 0)
    assert app.prompt("x").status_code == 200


def test_a_list_that_does_not_fit_the_line_leaves_nothing_behind(serve: Serve) -> None:
    app = serve(slots=1, max_queue=2)
    app.occupy(1)
    assert_error(app.prompt(["a", "b", "c"]), 429, "overloaded")
    assert (app.engine.stats().active, app.engine.stats().queued) == (1, 0)


def test_an_echo_may_go_through_the_engine_and_the_device(serve: Serve) -> None:
    app = serve()
    for through in ("queue", "device"):
        answer = app.client.post(f"/echo?through={through}", json={"prompt": [1]})
        assert answer.json == {"echo_prompt": [1]}
    other = app.client.post("/echo?through=walls", json={"prompt": 1})
    assert_error(other, 400, "invalid_value", "through")
    app.models.drain()
    refused = app.client.post("/echo?through=queue", json={"prompt": 1})
    assert refused.status_code == 503


def test_loading_is_503_with_retry_after_while_echo_and_healthz_work(serve: Serve) -> None:
    app = serve(loading=True)
    response = app.prompt("x")
    error = assert_error(response, 503, "loading")
    assert error["type"] == "unavailable_error"
    assert int(response.headers["Retry-After"]) >= 1
    assert app.client.post("/echo", json={"prompt": 1}).json == {"echo_prompt": 1}
    assert app.client.get("/healthz").status_code == 200


def test_draining_is_503_and_says_when_to_come_back(serve: Serve) -> None:
    app = serve()
    app.models.drain()
    response = app.prompt("x")
    assert_error(response, 503, "draining")
    assert int(response.headers["Retry-After"]) >= 1


def test_a_request_under_way_finishes_while_draining(serve: Serve) -> None:
    app = serve()
    app.runner.open.clear()
    answers: list[TestResponse] = []
    thread = threading.Thread(target=lambda: answers.append(app.prompt("hello")))
    thread.start()
    wait_until(lambda: app.engine.stats().active == 1)
    app.models.drain()
    app.runner.open.set()
    thread.join(5)
    [answer] = answers
    assert answer.json is not None
    assert answer.json["response"] == "hello"


@pytest.mark.parametrize("prompt", ["hello", ["a", "b", "c"]])
def test_a_deadline_that_passes_is_504_and_frees_the_slots(
    serve: Serve, prompt: str | list[str]
) -> None:
    app = serve(slots=1)
    app.runner.open.clear()
    response = app.prompt(prompt, headers={"X-Request-Timeout-Ms": "30"})
    error = assert_error(response, 504, "deadline")
    assert error["type"] == "timeout_error"
    assert (app.engine.stats().active, app.engine.stats().queued) == (0, 0)


def test_a_deadline_that_does_not_pass_changes_nothing(app: App) -> None:
    for value in ("1000000000", "00060000"):
        assert app.prompt("x", headers={"X-Request-Timeout-Ms": value}).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        *("", "0", "-1", "+5", "1.5", "1e3", "abc", "1000000001", "1 0", "0x10", "1_000", "²"),
        *("9" * 30, "0" * 20 + "1" + "0" * 20),
        "000000000001" + "0" * 400,  # 10**400 does not fit a float
        "000000000001" + "0" * 5000,  # and this has more digits than int() takes
    ],
)
def test_a_bad_deadline_is_refused(app: App, value: str) -> None:
    response = app.prompt("x", headers={"X-Request-Timeout-Ms": value})
    assert_error(response, 400, "invalid_value", "X-Request-Timeout-Ms")


def test_an_engine_that_dies_is_500_now_and_later_and_says_so(serve: Serve) -> None:
    app = serve(fail_at=3)
    error = assert_error(app.prompt("hello"), 500, "generation_failed")
    assert error["type"] == "server_error"
    assert "hello" not in error["message"]
    wait_until(lambda: len(app.deaths) == 1)
    assert isinstance(app.deaths[0], RuntimeError)
    assert_error(app.prompt("hello"), 500, "generation_failed")
    assert (app.engine.stats().active, app.engine.stats().queued) == (0, 0)


def test_many_threads_get_the_text_they_would_get_alone(app: App) -> None:
    texts = [f"request number {index}, {'x' * index}" for index in range(24)]
    answers: dict[str, Any] = {}

    def ask(text: str) -> None:
        document = app.prompt(text).json
        answers[text] = document and document["response"]

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == {text: text for text in texts}
