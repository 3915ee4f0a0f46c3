"""Thoughts and tools of Gemma 4, in both dialects, whole and streamed."""

import json
from typing import Any

import pytest

from gemma_server.engine.fake import fake_tokenizer
from testing.answers import assert_error_form, sse_events
from testing.chats import gemma4_tokenizer, shown
from tests.web.conftest import App, Serve

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
CALL = '<|tool_call>call:look{at:<|"|>é{<|"|>,n:2}<tool_call|>'
TURN = f"<|channel>thought\nHm.\n<channel|>I look. {CALL}{CALL}<|tool_response>"
ARGUMENTS = {"at": "é{", "n": 2}
USER = {"role": "user", "content": "What is there?"}


@pytest.fixture
def app(serve: Serve) -> App:
    """A model with tools and thoughts."""
    return serve(gemma4=True, context_length=2048, chunk=2048)


def says(app: App, turn: str) -> None:
    """Let the model answer with these tokens."""
    app.runner.says = turn


def ask(app: App, path: str = "/v1/chat/completions", **fields: Any) -> Any:
    body = {"model": "fake", "messages": [USER], "max_tokens": 500, "temperature": 0, **fields}
    if path.startswith("/api/"):
        del body["max_tokens"], body["temperature"]
    return app.post(json.dumps(body).encode(), path)


def last_prompt(app: App) -> str:
    return shown(app.runner.prompts[-1])


def test_openai_s_clients_get_thoughts_and_calls(app: App) -> None:
    says(app, TURN)
    [choice] = ask(app, tools=[LOOK], reasoning_effort="high").json["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert (message["content"], message["reasoning_content"]) == ("I look. ", "Hm.")
    first, second = message["tool_calls"]
    assert first["id"] != second["id"]
    assert (first["type"], first["function"]["name"]) == ("function", "look")
    assert json.loads(first["function"]["arguments"]) == ARGUMENTS
    assert "<|tool>declaration:look{" in last_prompt(app)
    assert "<|turn>system\n<|think|>\n" in last_prompt(app)


def test_a_stream_tells_the_same(app: App) -> None:
    says(app, TURN)
    answer = ask(app, tools=[LOOK], stream=True)
    choices = [event["choices"][0] for event in sse_events(answer.get_data())]
    deltas = [choice["delta"] for choice in choices]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "I look. "
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    assert len({call["id"] for call in calls}) == 2
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [ARGUMENTS] * 2
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_a_call_without_words_has_no_content(app: App) -> None:
    says(app, CALL)
    message = ask(app, tools=[LOOK]).json["choices"][0]["message"]
    assert message["content"] is None


def test_one_call_at_a_time(app: App) -> None:
    says(app, TURN)
    answer = ask(app, tools=[LOOK], parallel_tool_calls=False).json
    [choice] = answer["choices"]
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"
    end = gemma4_tokenizer().encode(TURN[: TURN.index(CALL) + len(CALL)])
    assert answer["usage"]["completion_tokens"] == len(end) - 1


def test_a_cut_call_is_text_and_says_length(app: App) -> None:
    says(app, CALL)
    [choice] = ask(app, tools=[LOOK], max_tokens=12).json["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == "<|tool_call>call:look{a"
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("fields", [{}, {"tools": [LOOK], "tool_choice": "none"}])
def test_without_tools_there_are_no_calls(app: App, fields: dict[str, Any]) -> None:
    says(app, CALL)
    [choice] = ask(app, **fields).json["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == CALL
    assert "<|tool>" not in last_prompt(app)


def test_logprobs_are_those_of_the_content(app: App) -> None:
    says(app, TURN)
    [choice] = ask(app, tools=[LOOK], logprobs=True).json["choices"]
    names = [entry["token"] for entry in choice["logprobs"]["content"]]
    assert "".join(names) == "I look. "


@pytest.mark.parametrize("effort", [None, "none", "minimal"])
def test_nobody_thinks_unasked(app: App, effort: str | None) -> None:
    says(app, "ok")
    message = ask(app, reasoning_effort=effort).json["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "ok", "refusal": None}
    assert "<|think|>" not in last_prompt(app)


def test_thinking_as_vllm_s_clients_ask_for_it(app: App) -> None:
    says(app, "ok")
    for options, thinks in (({"enable_thinking": True}, True), ({"thinking": False}, False)):
        ask(app, chat_template_kwargs=options, reasoning_effort="high")
        assert ("<|think|>" in last_prompt(app)) == thinks


def test_a_conversation_with_calls_goes_on(app: App) -> None:
    says(app, TURN)
    message = ask(app, tools=[LOOK]).json["choices"][0]["message"]
    responses = [
        {"role": "tool", "tool_call_id": call["id"], "content": content}
        for call, content in zip(message["tool_calls"], ("a wall", "a door"), strict=True)
    ]
    says(app, "A wall and a door.")
    answer = ask(app, tools=[LOOK], messages=[USER, message, *responses[::-1]])
    assert answer.json["choices"][0]["message"]["content"] == "A wall and a door."
    assert last_prompt(app).endswith(
        f"<|turn>model\n<|channel>thought\nHm.\n<channel|>{CALL}{CALL}"
        '<|tool_response>response:look{value:<|"|>a door<|"|>}<tool_response|>'
        '<|tool_response>response:look{value:<|"|>a wall<|"|>}<tool_response|>'
        "I look.<turn|>\n"
    )


def test_ollama_s_clients_get_thoughts_and_calls(app: App) -> None:
    says(app, TURN)
    whole = ask(app, "/api/chat", tools=[LOOK], stream=False).json
    message = whole["message"]
    assert (message["content"], message["thinking"]) == ("I look. ", "Hm.")
    functions = [call["function"] for call in message["tool_calls"]]
    assert functions == [
        {"index": index, "name": "look", "arguments": ARGUMENTS} for index in range(2)
    ]
    assert whole["done_reason"] == "stop"
    lines = ask(app, "/api/chat", tools=[LOOK]).get_data(as_text=True).splitlines()
    messages = [json.loads(line)["message"] for line in lines]
    assert "".join(part["content"] for part in messages) == "I look. "
    assert "".join(part.get("thinking", "") for part in messages) == "Hm."
    assert [
        call["function"] for part in messages for call in part.get("tool_calls", ())
    ] == functions


def test_ollama_s_models_think_unless_told_not_to(app: App) -> None:
    says(app, "<|channel>thought\nHm.<channel|>ok")
    for path in ("/api/chat", "/api/generate"):
        for think, thinks in ((None, True), (True, True), ("low", True), (False, False)):
            answer = ask(app, path, think=think, stream=False, prompt="Why?").json
            assert ("<|think|>" in last_prompt(app)) == thinks
            told = answer.get("message", answer)
            assert (told.get("content", told.get("response")), told["thinking"]) == ("ok", "Hm.")
    raw = ask(app, "/api/generate", raw=True, prompt="Why?", stream=False).json
    assert raw["response"] == "thought\nHm.ok"


def test_ollama_s_responses_have_the_tool_s_name(app: App) -> None:
    says(app, "ok")
    call = {"function": {"name": "look", "arguments": {"at": "x"}}}
    history = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "look", "content": "a wall"},
    ]
    ask(app, "/api/chat", messages=history, tools=[LOOK], think=False, stream=False)
    assert 'response:look{value:<|"|>a wall<|"|>}' in last_prompt(app)
    assert ask(app, "/api/show").json["capabilities"] == ["completion", "tools", "thinking"]


DEEP: Any = {}
for _ in range(70):
    DEEP = {"properties": {"a": DEEP}}


def _tool(**function: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "look", **function}}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": _tool(name="no spaces")}, "tools[0].function.name"),
        ({"tools": _tool(parameters=DEEP)}, "tools[0].function.parameters"),
        ({"tools": _tool(parameters={"type": "string"})}, "tools[0].function.parameters.type"),
        ({"tools": _tool(description="\ud800")}, "tools[0].function"),
        (
            {"tools": _tool(parameters={"properties": []})},
            "tools[0].function.parameters.properties",
        ),
        ({"tools": [LOOK] * 129}, "tools"),
        ({"tools": [LOOK], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"chat_template_kwargs": {"documents": 1}}, "chat_template_kwargs.documents"),
        ({"reasoning_effort": "very"}, "reasoning_effort"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1]"),
        (
            {"messages": [{"role": "user", "tool_calls": [LOOK]}]},
            "messages[0].tool_calls",
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [{"id": "1", **LOOK}]},
                    {"role": "tool", "tool_call_id": "2", "content": "x"},
                ]
            },
            "messages[2]",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "look", "arguments": "[1]"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(app: App, fields: dict[str, Any], param: str) -> None:
    answer = ask(app, **fields)
    assert answer.status_code == 400
    assert assert_error_form(answer)["param"] == param


def test_a_model_without_thoughts_says_so(serve: Serve) -> None:
    plain, options = serve(), {"chat_template_kwargs": {"thinking": True}}
    for path, fields, param in (
        ("/v1/chat/completions", options, "chat_template_kwargs"),
        ("/api/chat", {"think": True}, "think"),
        ("/api/generate", {"think": "high", "prompt": "x"}, "think"),
    ):
        answer = ask(plain, path, **fields)
        assert answer.status_code == 400
        error = answer.json["error"]
        assert param in (error if isinstance(error, str) else error["param"])
    assert ask(plain, reasoning_effort="high").status_code == 200


def test_a_model_without_tags_calls_in_json(serve: Serve) -> None:
    plain = serve(context_length=4096, chunk=4096)
    answer = ask(plain, tools=[LOOK], tool_choice="required").json
    [choice] = answer["choices"]
    [call] = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], call["function"]["name"]) == ("tool_calls", "look")
    assert isinstance(json.loads(call["function"]["arguments"]), dict)
    history = [
        USER,
        choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "5"},
    ]
    said = ask(plain, tools=[LOOK], messages=history).json["choices"][0]["message"]["content"]
    assert '"name": "look", "description": "Looks."' in said  # the fake repeats the prompt
    prompt = fake_tokenizer().decode(plain.runner.prompts[-1])
    assert '{"name": "look", "parameters": {' in prompt
    assert '<tool_response name="look">\n5\n</tool_response>' in prompt
    assert ask(plain, "/api/show").json["capabilities"] == ["completion", "tools"]


def test_what_such_a_model_cannot_do_is_refused(serve: Serve) -> None:
    plain = serve(context_length=4096)
    answer = ask(plain, tools=[LOOK], response_format={"type": "json_object"})
    assert assert_error_form(answer)["param"] == "response_format"
    strict = {"type": "function", "function": {**LOOK["function"], "strict": True}}  # type: ignore[dict-item]
    choice = ask(plain, tools=[strict]).json["choices"][0]
    assert "You have access" in choice["message"]["content"]  # text is still possible


def test_a_long_chat_loses_responses_with_their_calls(app: App) -> None:
    says(app, "ok")
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    history = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "x" * 1500},
        {"role": "user", "content": "y" * 800},
    ]
    answer = ask(app, messages=history, truncate=True, max_tokens=10)
    assert answer.json["truncated_tokens"] > 1500
    assert last_prompt(app).count("x") == 0
    assert "tool_call" not in last_prompt(app)


@pytest.mark.parametrize(
    "parameters",
    [
        {"required": 5},
        {"properties": {"a": {"type": "object", "required": 7}}},
        {"properties": {"a": {"type": "array", "items": {"required": None, "type": 3}}}},
        {"properties": {"a": 1, "b": {"type": ["string", 1], "enum": "x", "description": {}}}},
    ],
)
def test_odd_schemas_are_told_somehow(app: App, parameters: Any) -> None:
    says(app, "ok")
    assert ask(app, tools=_tool(parameters=parameters)).status_code == 200


def test_the_template_shown_has_the_model_s_markers(app: App) -> None:
    assert "<|turn>user" in ask(app, "/api/show").json["template"]


def test_tokenize_knows_tools_too(app: App) -> None:
    body = {"messages": [USER], "tools": [LOOK], "chat_template_kwargs": {"enable_thinking": True}}
    ids = app.post(json.dumps(body).encode(), "/tokenize").json["tokens"]  # type: ignore[index]
    assert "<|think|>" in shown(ids)
    assert "<|tool>declaration:look" in shown(ids)
