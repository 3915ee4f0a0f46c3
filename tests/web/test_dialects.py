"""What OpenAI's and Ollama's routes share with /prompt, and where their forms differ."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from gemma_server.api import job
from gemma_server.engine.fake import fake_tokenizer
from gemma_server.text.chat import Message, encode_chat
from tests.web.conftest import (
    Serve,
    Sidecar,
    assert_error,
    assert_error_form,
    parse_json,
    sse_events,
    wait_until,
)

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


def _ask(sidecar: Sidecar, path: str, **fields: Any) -> TestResponse:
    return sidecar.post(json.dumps({**ROUTES[path], **fields}).encode(), path)


def _parts(response: TestResponse) -> list[dict[str, Any]]:
    """The documents of a stream, whatever its form, without signs of life."""
    if response.mimetype == "application/x-ndjson":
        return [parse_json(line) for line in response.data.splitlines()]
    return sse_events(response.data.replace(b": ping\n\n", b""))


def _text(document: dict[str, Any]) -> str:
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


@each_route
def test_streamed_text_joined_is_the_whole_text(sidecar: Sidecar, path: str) -> None:
    whole = _ask(sidecar, path, stream=False)
    streamed = _parts(_ask(sidecar, path, stream=True))
    assert whole.json is not None
    assert "".join(map(_text, streamed)) == _text(whole.json) != ""
    assert whole.json["timings"]["compile_ms"] == 0
    assert set(streamed[-1]["timings"]) == set(whole.json["timings"])
    assert "decode;dur=" in whole.headers["Server-Timing"]


@each_route
def test_no_chunk_has_a_key_for_errors(sidecar: Sidecar, path: str) -> None:
    """openai-go ends a stream at one, null or not."""
    for document in _parts(_ask(sidecar, path, stream=True)):
        assert "error" not in document


@each_route
def test_a_long_wait_has_signs_of_life(
    serve: Serve, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "BEAT_S", 0.1)
    sidecar = serve(step_s=0.25)
    response = _ask(sidecar, path, stream=True)
    parts = _parts(response)
    if response.mimetype == "application/x-ndjson":
        assert "" in map(_text, parts[:-1])
    else:
        assert response.data.startswith(b": ping\n\n")
    assert "hello" in "".join(map(_text, parts)) or "Hi" in "".join(map(_text, parts))


@each_route
def test_a_failure_in_mid_stream_is_told_and_breaks_the_body(serve: Serve, path: str) -> None:
    sidecar = serve(fail_at=4)
    response = _ask(sidecar, path, stream=True)
    sent: list[bytes] = []
    with pytest.raises(BrokenPipeError):
        sent.extend(response.iter_encoded())
    body = b"".join(sent)
    last = body.rstrip().rpartition(b"\n")[2].removeprefix(b"data: ")
    error = parse_json(last)["error"]
    message = error if path.startswith("/api/") else error["message"]
    assert message.startswith("the engine died")
    assert b"[DONE]" not in body
    assert sidecar.deaths


@each_route
def test_another_model_is_404(sidecar: Sidecar, path: str) -> None:
    response = _ask(sidecar, path, model="other")
    if path.startswith("/api/"):
        assert (response.status_code, response.json) == (404, {"error": "model 'other' not found"})
    else:
        assert_error(response, 404, "model_not_found", "model")


@each_route
def test_while_loading_it_is_503_and_worth_a_retry(serve: Serve, path: str) -> None:
    response = _ask(serve(loading=True), path)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    assert response.headers["X-Should-Retry"] == "true"
    assert response.json is not None
    is_text = isinstance(response.json["error"], str)
    assert is_text == path.startswith("/api/")


@each_route
def test_leaving_a_stream_frees_the_slot(serve: Serve, path: str) -> None:
    sidecar = serve(step_s=0.05)
    response = _ask(sidecar, path, stream=True)
    next(iter(response.iter_encoded()))
    assert sidecar.engine.active == 1
    response.close()
    wait_until(lambda: sidecar.engine.active == 0)


def test_leaving_a_stream_of_several_choices_frees_all_slots(serve: Serve) -> None:
    sidecar = serve(slots=4, step_s=0.05)
    response = _ask(sidecar, "/v1/completions", stream=True, n=3)
    next(iter(response.iter_encoded()))
    assert sidecar.engine.active == 3
    response.close()
    wait_until(lambda: sidecar.engine.active == 0)


def test_null_is_as_good_as_nothing(sidecar: Sidecar) -> None:
    nothing = dict.fromkeys(("stop", "n", "tools", "logprobs", "user"))
    nothing["stream_options"] = {"include_usage": None}
    assert _ask(sidecar, "/v1/completions", **nothing).status_code == 200
    assert _ask(sidecar, "/api/generate", format=None, think=None, stream=None).status_code == 200


def test_every_dialect_s_defaults_are_its_own(serve: Serve) -> None:
    sidecar = serve()
    for path, body in ROUTES.items():
        fields = {
            key: value for key, value in body.items() if key not in ("temperature", "options")
        }
        sidecar.post(json.dumps(fields).encode(), path)
    found = [(how.temperature, how.top_k, how.top_p) for how in sidecar.runner.samplings]
    openai, ollama = (1.0, 0, 1.0), (0.8, 40, 0.9)
    assert found == [(0.0, 0, 1.0), openai, openai, ollama, ollama]


def test_penalties_and_bias_arrive(serve: Serve) -> None:
    sidecar = serve()
    wishes = {
        "frequency_penalty": 0.5,
        "presence_penalty": -1.0,
        "repetition_penalty": 1.2,
        "logit_bias": {"9": 5, "10": -100.0},
        "min_tokens": 3,
    }
    assert _ask(sidecar, "/v1/completions", **wishes).status_code == 200
    last_words = {"repeat_penalty": 1.3, "repeat_last_n": 7, "frequency_penalty": 1}
    assert _ask(sidecar, "/api/generate", options=last_words).status_code == 200
    one, other = sidecar.runner.samplings
    assert (one.frequency_penalty, one.presence_penalty, one.repetition_penalty) == (0.5, -1, 1.2)
    assert (one.bias, one.penalty_window) == (((9, 5.0), (10, -100.0)), None)
    assert (other.repetition_penalty, other.frequency_penalty) == (1.3, 1)
    assert other.penalty_window == 7


def test_completions_list_the_token_that_ended_the_text(sidecar: Sidecar) -> None:
    """Evaluation harnesses drop the last entry of one drawn token, whatever it was."""
    asked: dict[str, Any] = {"prompt": "hi", "max_tokens": 3, "logprobs": 1, "echo": True}
    document = _ask(sidecar, "/v1/completions", **asked).json
    assert document is not None
    [choice] = document["choices"]
    assert choice["text"] == "hihi"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["<bos>", "h", "i", "h", "i", "<eos>"]
    assert logprobs["text_offset"] == [0, 0, 1, 2, 3, 4]
    assert logprobs["token_logprobs"][-1] == pytest.approx(-math.log(2))
    assert "<eos>" in logprobs["top_logprobs"][-1]
    assert document["usage"]["completion_tokens"] == 3
    chunks = [
        part["choices"][0]
        for part in _parts(_ask(sidecar, "/v1/completions", stream=True, **asked))
    ]
    listed = [chunk["logprobs"] for chunk in chunks if chunk["logprobs"]]
    for name, values in logprobs.items():
        assert [value for part in listed for value in part[name]] == values
    cut = _ask(sidecar, "/v1/completions", **{**asked, "max_tokens": 2}).json
    assert cut is not None
    assert cut["choices"][0]["logprobs"]["tokens"][-2:] == ["h", "i"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"continue_final_message": True, "add_generation_prompt": False}),
        ("/v1/chat/completions", {"continue_final_message": True}),
        ("/api/chat", {}),
    ],
)
def test_the_model_goes_on_with_what_it_was_made_to_say(
    sidecar: Sidecar, path: str, fields: dict[str, Any]
) -> None:
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because "}]
    document = _ask(sidecar, path, messages=said, stream=False, **fields).json
    assert document is not None
    turns = [Message("user", "Why?"), Message("assistant", "Because")]
    expected = encode_chat(fake_tokenizer(), turns, goes_on=True)
    read = (
        document["usage"]["prompt_tokens"] if "usage" in document else document["prompt_eval_count"]
    )
    assert read == len(expected)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]},
            "messages[0].function_call",
        ),
    ],
)
def test_what_a_chat_cannot_be_is_refused_by_name(
    sidecar: Sidecar, fields: dict[str, Any], param: str
) -> None:
    response = _ask(sidecar, "/v1/chat/completions", **fields)
    assert (response.status_code, assert_error_form(response)["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_constraints_that_others_know_are_never_ignored(sidecar: Sidecar, path: str) -> None:
    wanted: dict[str, Any] = {
        "guided_choice": ["a", "b"],
        "structured_outputs": {"choice": ["a"]},
        "grammar": "root ::= x",
        "bad_words": ["x"],
        "prompt_logprobs": 0,
        "use_beam_search": True,
        "n_predict": 5,
        "mirostat": 2,
        "repeat_penalty": 1.1,
    }
    for name, value in wanted.items():
        assert_error(_ask(sidecar, path, **{name: value}), 400, "unsupported_field", name)
    nothing: dict[str, Any] = {
        "guided_json": None,
        "grammar": "",
        "bad_words": [],
        "mirostat": 0,
        "typical_p": 1.0,
    }
    assert _ask(sidecar, path, **nothing, min_keep=0).status_code == 200


def test_a_raw_prompt_is_all_there_is(sidecar: Sidecar) -> None:
    for name, value in (("system", "S"), ("context", [2, 9])):
        response = _ask(sidecar, "/api/generate", raw=True, **{name: value})
        assert (response.status_code, response.json) == (
            400,
            {"error": f"{name}: a raw prompt is all that the model gets"},
        )


def test_ollama_s_seed_is_random_at_minus_1_alone(serve: Serve) -> None:
    sidecar = serve()
    for options in ({"seed": 0}, {"seed": 0}, {"seed": -1}, {"seed": -1}, {}):
        _ask(sidecar, "/api/generate", options=options)
    seeds = [how.seed for how in sidecar.runner.samplings]
    assert seeds[:2] == [0, 0]
    assert len(set(seeds)) == 4


def test_show_takes_either_name_and_both(sidecar: Sidecar) -> None:
    for body in ({"name": "fake"}, {"model": "fake"}, {"model": "", "name": "fake"}):
        assert sidecar.client.post("/api/show", json=body).status_code == 200
    assert sidecar.client.post("/api/show", json={"model": "", "name": "x"}).status_code == 404


def test_tokens_behind_a_stop_string_have_no_logprobs(sidecar: Sidecar) -> None:
    document = _ask(sidecar, "/v1/completions", stop="lo", logprobs=0).json
    assert document is not None
    assert document["choices"][0]["text"] == "hel"
    assert document["choices"][0]["logprobs"]["tokens"] == ["h", "e", "l"]


@pytest.mark.parametrize("path", ["/v1/completions", "/api/generate"])
def test_a_long_text_is_cut_only_for_those_who_ask_and_says_by_how_much(
    serve: Serve, path: str
) -> None:
    sidecar = serve(context_length=32)
    limits: dict[str, Any] = {"max_tokens": 10, "options": {"num_predict": 10, "temperature": 0}}
    text = "0123456789" * 5
    assert _ask(sidecar, path, prompt=text, stream=False).status_code == 400
    document = _ask(sidecar, path, prompt=text, stream=False, truncate=True, **limits).json
    assert document is not None
    # <bos> and the last 21 of 50: then ten fit behind it
    assert document["truncated_tokens"] == 29
    assert _text(document) == text[29:39]
    parts = _parts(_ask(sidecar, path, prompt=text, stream=True, truncate=True, **limits))
    assert parts[-1]["truncated_tokens"] == 29
    short = _ask(sidecar, path, prompt="0", stream=False, truncate=True, **limits).json
    assert short is not None
    assert short["truncated_tokens"] == 0
    assert "truncated_tokens" not in (_ask(sidecar, path, stream=False).json or {})


def test_a_text_to_score_is_cut_to_the_longest_that_fits(serve: Serve) -> None:
    sidecar = serve(context_length=32)
    text = "0123456789" * 5
    scored: dict[str, Any] = {"max_tokens": 0, "logprobs": 0, "echo": True}
    document = _ask(sidecar, "/v1/completions", prompt=text, truncate=True, **scored).json
    assert document is not None
    assert document["truncated_tokens"] == 51 - 31
    assert document["choices"][0]["text"] == text[-30:]


def test_whole_numbers_may_have_a_fraction_of_zero(sidecar: Sidecar) -> None:
    whole: dict[str, Any] = {"max_tokens": 2.0, "options": {"num_predict": 2.0}}
    for path in ("/v1/completions", "/api/generate"):
        document = _ask(sidecar, path, prompt="hello", stream=False, **whole).json
        assert document is not None
        assert len(_text(document)) == 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_long_chat_loses_its_oldest_messages_but_not_the_system_s(
    serve: Serve, path: str
) -> None:
    sidecar = serve(context_length=128)
    said = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "u" * 80},
        {"role": "assistant", "content": "a" * 30},
        {"role": "user", "content": "v"},
    ]
    whole = _ask(sidecar, path, messages=said, stream=False)
    assert whole.status_code == 400
    document = _ask(sidecar, path, messages=said, stream=False, truncate=True).json
    assert document is not None
    assert document["truncated_tokens"] == 80 + 8  # the turn: two markers, user, two line ends
    assert _text(document) == "model\n" + "a" * 30
    # No more goes than has to.
    many = [{"role": "user", "content": str(number)} for number in range(400)]
    document = _ask(sidecar, path, messages=many, stream=False, truncate=True).json
    assert document is not None
    kept = _text(document).removeprefix("user\n").split("\n\n")
    # 16 tokens of the template, three to a message and two between them: ten make just 64.
    assert kept == [str(number) for number in range(390, 400)]
    # The last message alone is too long.
    said[-1]["content"] = "v" * 200
    assert _ask(sidecar, path, messages=said, truncate=True).status_code == 400


def test_an_operator_s_limit_holds_on_every_route(serve: Serve) -> None:
    sidecar = serve(max_steps=3)
    cases: dict[str, dict[str, Any]] = {
        "/v1/completions": {"max_tokens": 4},
        "/v1/chat/completions": {"max_completion_tokens": 4},
        "/api/generate": {"options": {"num_predict": 4}},
    }
    for path, fields in cases.items():
        response = _ask(sidecar, path, **fields)
        assert response.status_code == 400
        assert "this server's limit is 3" in response.get_data(as_text=True)
    whole = _ask(sidecar, "/api/chat", stream=False).json
    assert whole is not None
    assert (whole["eval_count"], whole["done_reason"]) == (3, "length")


def test_the_root_tells_programs_and_people_what_runs(sidecar: Sidecar) -> None:
    response = sidecar.client.get("/")
    assert (response.mimetype, response.data) == ("text/plain", b"Ollama is running")
    assert sidecar.client.head("/").status_code == 200
    page = sidecar.client.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.mimetype == "text/html"
    assert "POST /v1/chat/completions" in page.get_data(as_text=True)


def test_the_version_is_that_of_the_ollama_whose_client_is_tested(sidecar: Sidecar) -> None:
    required = (Path(__file__).parents[2] / "clients" / "compat" / "go.mod").read_text()
    version = sidecar.client.get("/api/version").json
    assert version is not None
    assert f"github.com/ollama/ollama v{version['version']}\n" in required


def test_an_unknown_path_below_api_has_ollama_s_error(sidecar: Sidecar) -> None:
    response = sidecar.client.post("/api/pull", json={"model": "x"})
    assert response.status_code == 404
    assert response.json is not None
    assert isinstance(response.json["error"], str)
