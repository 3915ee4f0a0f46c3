"""What the fields of OpenAI's and Ollama's bodies do, and which are refused."""

import json
import math
from typing import Any

import pytest

from gemma_server.engine.fake import fake_tokenizer
from gemma_server.text.chat import Message
from gemma_server.text.chat_template import GemmaTemplate
from gemma_server.weights.sampling_defaults import SamplingDefaults
from testing.answers import assert_error, assert_error_form
from tests.web.conftest import App, Serve
from tests.web.dialects import ROUTES, ask, parts_of, text_of


def test_null_is_as_good_as_nothing(app: App) -> None:
    nothing = dict.fromkeys(("stop", "n", "tools", "logprobs", "user"))
    nothing["stream_options"] = {"include_usage": None}
    assert ask(app, "/v1/completions", **nothing).status_code == 200
    assert ask(app, "/api/generate", format=None, think=None, stream=None).status_code == 200


@pytest.mark.parametrize(
    ("model_s", "openai", "ollama"),
    [
        (SamplingDefaults(), (1.0, 0, 1.0), (0.8, 40, 0.9)),
        (SamplingDefaults(0.7, 64, 0.95), (0.7, 64, 0.95), (0.7, 64, 0.95)),
        (SamplingDefaults(top_k=64), (1.0, 64, 1.0), (0.8, 64, 0.9)),
        (SamplingDefaults(0.0, 0), (0.0, 0, 1.0), (0.0, 0, 0.9)),
    ],
)
def test_defaults_are_the_model_s_and_then_the_dialect_s(
    serve: Serve, model_s: SamplingDefaults, openai: Any, ollama: Any
) -> None:
    app = serve(sampling=model_s)
    for path, body in ROUTES.items():
        fields = {
            key: value for key, value in body.items() if key not in ("temperature", "options")
        }
        app.post(json.dumps(fields).encode(), path)
    found = [(how.temperature, how.top_k, how.top_p) for how in app.runner.samplings]
    assert found == [(0.0, 0, 1.0), openai, openai, ollama, ollama]
    given: dict[str, Any] = {"temperature": 0.5, "top_k": 3, "top_p": 0.25}
    ask(app, "/v1/completions", **given)
    ask(app, "/api/generate", options=given)
    last = [(how.temperature, how.top_k, how.top_p) for how in app.runner.samplings[-2:]]
    assert last == [(0.5, 3, 0.25)] * 2


def test_penalties_and_bias_arrive(serve: Serve) -> None:
    app = serve()
    wishes = {
        "frequency_penalty": 0.5,
        "presence_penalty": -1.0,
        "repetition_penalty": 1.2,
        "logit_bias": {"9": 5, "10": -100.0},
        "min_tokens": 3,
    }
    assert ask(app, "/v1/completions", **wishes).status_code == 200
    last_words = {"repeat_penalty": 1.3, "repeat_last_n": 7, "frequency_penalty": 1}
    assert ask(app, "/api/generate", options=last_words).status_code == 200
    one, other = app.runner.samplings
    assert (one.frequency_penalty, one.presence_penalty, one.repetition_penalty) == (0.5, -1, 1.2)
    assert (one.bias, one.penalty_window) == (((9, 5.0), (10, -100.0)), None)
    assert (other.repetition_penalty, other.frequency_penalty) == (1.3, 1)
    assert other.penalty_window == 7


def test_completions_list_the_token_that_ended_the_text(app: App) -> None:
    """Evaluation harnesses drop the last entry of one drawn token, whatever it was."""
    asked: dict[str, Any] = {"prompt": "hi", "max_tokens": 3, "logprobs": 1, "echo": True}
    document = ask(app, "/v1/completions", **asked).json
    assert document is not None
    [choice] = document["choices"]
    assert choice["text"] == "hihi"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["<bos>", "h", "i", "h", "i", "<eos>"]
    assert logprobs["text_offset"] == [0, 0, 1, 2, 3, 4]
    assert logprobs["token_logprobs"][-1] == pytest.approx(-math.log(2))
    assert "<eos>" in logprobs["top_logprobs"][-1]
    assert document["usage"]["completion_tokens"] == 3
    streamed = parts_of(ask(app, "/v1/completions", stream=True, **asked))
    chunks = [part["choices"][0] for part in streamed]
    listed = [chunk["logprobs"] for chunk in chunks if chunk["logprobs"]]
    for name, values in logprobs.items():
        assert [value for part in listed for value in part[name]] == values
    cut = ask(app, "/v1/completions", **{**asked, "max_tokens": 2}).json
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
    app: App, path: str, fields: dict[str, Any]
) -> None:
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because "}]
    document = ask(app, path, messages=said, stream=False, **fields).json
    assert document is not None
    turns = [Message("user", "Why?"), Message("assistant", "Because")]
    expected = GemmaTemplate(fake_tokenizer()).encode(turns, goes_on=True)
    read = (
        document["usage"]["prompt_tokens"] if "usage" in document else document["prompt_eval_count"]
    )
    assert read == len(expected)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {
                "messages": [{"role": "assistant", "content": "x"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "continue_final_message",
        ),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
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
    app: App, fields: dict[str, Any], param: str
) -> None:
    response = ask(app, "/v1/chat/completions", **fields)
    assert (response.status_code, assert_error_form(response)["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_constraints_that_others_know_are_never_ignored(app: App, path: str) -> None:
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
        assert_error(ask(app, path, **{name: value}), 400, "unsupported_field", name)
    nothing: dict[str, Any] = {
        "guided_json": None,
        "grammar": "",
        "bad_words": [],
        "mirostat": 0,
        "typical_p": 1.0,
    }
    assert ask(app, path, **nothing, min_keep=0).status_code == 200


def test_a_raw_prompt_is_all_there_is(app: App) -> None:
    for name, value in (("system", "S"), ("context", [2, 9])):
        response = ask(app, "/api/generate", raw=True, **{name: value})
        assert (response.status_code, response.json) == (
            400,
            {"error": f"{name}: a raw prompt is all that the model gets"},
        )


def test_ollama_s_seed_is_random_at_minus_1_alone(serve: Serve) -> None:
    app = serve()
    for options in ({"seed": 0}, {"seed": 0}, {"seed": -1}, {"seed": -1}, {}):
        ask(app, "/api/generate", options=options)
    seeds = [how.seed for how in app.runner.samplings]
    assert seeds[:2] == [0, 0]
    assert len(set(seeds)) == 4


def test_show_takes_either_name_and_both(app: App) -> None:
    for body in ({"name": "fake"}, {"model": "fake"}, {"model": "", "name": "fake"}):
        assert app.client.post("/api/show", json=body).status_code == 200
    assert app.client.post("/api/show", json={"model": "", "name": "x"}).status_code == 404


def test_tokens_behind_a_stop_string_have_no_logprobs(app: App) -> None:
    document = ask(app, "/v1/completions", stop="lo", logprobs=0).json
    assert document is not None
    assert document["choices"][0]["text"] == "hel"
    assert document["choices"][0]["logprobs"]["tokens"] == ["h", "e", "l"]


@pytest.mark.parametrize("path", ["/v1/completions", "/api/generate"])
def test_a_long_text_is_cut_only_for_those_who_ask_and_says_by_how_much(
    serve: Serve, path: str
) -> None:
    app = serve(context_length=32)
    limits: dict[str, Any] = {"max_tokens": 10, "options": {"num_predict": 10, "temperature": 0}}
    text = "0123456789" * 5
    assert ask(app, path, prompt=text, stream=False).status_code == 400
    document = ask(app, path, prompt=text, stream=False, truncate=True, **limits).json
    assert document is not None
    # <bos> and the last 21 of 50: then ten fit behind it
    assert document["truncated_tokens"] == 29
    assert text_of(document) == text[29:39]
    parts = parts_of(ask(app, path, prompt=text, stream=True, truncate=True, **limits))
    assert parts[-1]["truncated_tokens"] == 29
    short = ask(app, path, prompt="0", stream=False, truncate=True, **limits).json
    assert short is not None
    assert short["truncated_tokens"] == 0
    assert "truncated_tokens" not in (ask(app, path, stream=False).json or {})


def test_a_text_to_score_is_cut_to_the_longest_that_fits(serve: Serve) -> None:
    app = serve(context_length=32)
    text = "0123456789" * 5
    scored: dict[str, Any] = {"max_tokens": 0, "logprobs": 0, "echo": True}
    document = ask(app, "/v1/completions", prompt=text, truncate=True, **scored).json
    assert document is not None
    assert document["truncated_tokens"] == 51 - 31
    assert document["choices"][0]["text"] == text[-30:]


def test_whole_numbers_may_have_a_fraction_of_zero(app: App) -> None:
    whole: dict[str, Any] = {"max_tokens": 2.0, "options": {"num_predict": 2.0}}
    for path in ("/v1/completions", "/api/generate"):
        document = ask(app, path, prompt="hello", stream=False, **whole).json
        assert document is not None
        assert len(text_of(document)) == 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_long_chat_loses_its_oldest_messages_but_not_the_system_s(
    serve: Serve, path: str
) -> None:
    app = serve(context_length=128)
    said = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "u" * 80},
        {"role": "assistant", "content": "a" * 30},
        {"role": "user", "content": "v"},
    ]
    whole = ask(app, path, messages=said, stream=False)
    assert whole.status_code == 400
    document = ask(app, path, messages=said, stream=False, truncate=True).json
    assert document is not None
    assert document["truncated_tokens"] == 80 + 8  # the turn: two markers, user, two line ends
    assert text_of(document) == "model\n" + "a" * 30
    # No more goes than has to.
    many = [{"role": "user", "content": str(number)} for number in range(400)]
    document = ask(app, path, messages=many, stream=False, truncate=True).json
    assert document is not None
    kept = text_of(document).removeprefix("user\n").split("\n\n")
    # 16 tokens of the template, three to a message and two between them: ten make just 64.
    assert kept == [str(number) for number in range(390, 400)]
    # The last message alone is too long.
    said[-1]["content"] = "v" * 200
    assert ask(app, path, messages=said, truncate=True).status_code == 400


def test_min_tokens_holds_back_stop_strings_too(app: App) -> None:
    asked = {"prompt": "hello hello", "stop": ["lo"], "max_tokens": 11}
    short = ask(app, "/v1/completions", **asked).json
    longer = ask(app, "/v1/completions", **asked, min_tokens=5).json
    assert short is not None
    assert longer is not None
    assert short["choices"][0]["text"] == "hel"
    assert longer["choices"][0]["text"] == "hello hel"


@pytest.mark.parametrize("path", ["/v1/completions", "/prompt"])
def test_a_control_token_may_be_a_stop_string(app: App, path: str) -> None:
    """The fake says what it was told, control tokens too."""
    asked: Any = {"prompt": "one<start_of_turn>two", "stop": ["<start_of_turn>"]}
    if path == "/prompt":
        document = app.prompt(**asked).json
        assert document is not None
        found = document["response"], document["finish_reason"]
    else:
        document = ask(app, path, **asked, max_tokens=20).json
        assert document is not None
        [choice] = document["choices"]
        found = choice["text"], choice["finish_reason"]
    assert found == ("one", "stop")


def test_as_many_stop_strings_as_editors_send(app: App) -> None:
    stops = [f"{number:0256}" for number in range(64)]
    assert ask(app, "/v1/completions", stop=stops).status_code == 200
    response = ask(app, "/v1/completions", stop=[*stops, "x"])
    assert assert_error_form(response)["param"] == "stop"
    response = ask(app, "/v1/completions", stop=["x" * 257])
    assert assert_error_form(response)["param"] == "stop[0]"


@pytest.mark.parametrize("goes_on", [False, True])
def test_tokenize_takes_messages_as_a_chat_does(app: App, goes_on: bool) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "<end_of_turn>"}]
    fields: dict[str, Any] = {"messages": messages}
    if goes_on:
        messages.append({"role": "assistant", "content": "A"})
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    document = app.client.post("/tokenize", json=fields).json
    chat = ask(app, "/v1/chat/completions", **fields).json
    assert document is not None
    assert chat is not None
    assert document["count"] == len(document["tokens"]) == chat["usage"]["prompt_tokens"]
    shown = app.client.post("/detokenize", json={"tokens": document["tokens"]}).json
    assert shown is not None
    assert "S\n\n<end_of_turn>" in shown["prompt"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "x", "messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}], "continue_final_message": True},
        {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": []},
        {"prompt": "x", "return_token_strs": True},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]},
    ],
)
def test_what_cannot_be_tokenized_is_refused(app: App, body: dict[str, Any]) -> None:
    response = app.client.post("/tokenize", json=body)
    assert response.status_code == 400
    assert assert_error_form(response)["param"]
