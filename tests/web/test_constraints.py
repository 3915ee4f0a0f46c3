"""Answers that have to be something, on every route, on the fake engine: it repeats the prompt
where it may."""

import json
from typing import Any

import jsonschema_rs
import pytest

from testing.answers import assert_error_form, sse_events
from testing.chats import gemma4_tokenizer, shown
from tests.web.conftest import App, Serve

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
DIGITS = r"[0-9]{2}-[0-9]"
TOOL = {"type": "function", "function": {"name": "look", "parameters": PERSON}}
USER = {"role": "user", "content": "hello"}


def ask(app: App, path: str, **fields: Any) -> Any:
    body: dict[str, Any] = {"model": "fake"}
    if path in ("/v1/chat/completions", "/api/chat"):
        body["messages"] = [USER]
    else:
        body["prompt"] = "hello"
    if path.startswith("/api/"):
        body["stream"] = False
    elif path == "/v1/completions":
        body["max_tokens"] = 100
    return app.post(json.dumps({**body, **fields}).encode(), path)


def said(document: Any) -> tuple[str, str]:
    """The text, and why it ended."""
    if "choices" in document:
        [choice] = document["choices"]
        message = choice.get("message", {"content": choice.get("text")})
        return message["content"], choice["finish_reason"]
    message = document.get("message", {"content": document.get("response")})
    return message["content"], document.get("finish_reason", document.get("done_reason"))


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
FORMAT = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}}
OF_SCHEMA: list[tuple[str, dict[str, Any]]] = [
    ("/prompt", {"response_schema": PERSON}),
    (CHAT, {"response_format": FORMAT}),
    (CHAT, {"response_format": {"type": "json_schema", "schema": PERSON}}),
    (CHAT, {"response_format": {"type": "json_object", "schema": PERSON}}),
    (CHAT, {"structured_outputs": {"json": PERSON}}),
    (TEXT, {"guided_json": PERSON}),
    (TEXT, {"guided_json": json.dumps(PERSON)}),
    (TEXT, {"json_schema": PERSON}),
    (TEXT, {"response_format": FORMAT}),
    ("/api/chat", {"format": PERSON}),
    ("/api/generate", {"format": PERSON}),
]
OF_TEXT: list[tuple[str, dict[str, Any]]] = [
    ("/prompt", {"regex": DIGITS}),
    (CHAT, {"regex": DIGITS}),
    (TEXT, {"guided_regex": DIGITS}),
    (TEXT, {"structured_outputs": {"regex": DIGITS}}),
    ("/prompt", {"grammar": 'root ::= [0-9] [0-9] "-" [0-9]'}),
    (TEXT, {"guided_grammar": "start: /[0-9]{2}/ /-[0-9]/"}),
    (CHAT, {"grammar": 'root ::= d d "-" d\nd ::= [0-9]'}),
    ("/prompt", {"choice": ["00-0", "11-1"]}),
    (TEXT, {"guided_choice": ["00-0"]}),
    (CHAT, {"structured_outputs": {"choice": ["00-0", "bye"]}}),
]
OF_OBJECT: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"response_format": {"type": "json_object"}}),
    (TEXT, {"structured_outputs": {"json_object": True}}),
    ("/api/chat", {"format": "json"}),
]


@pytest.mark.parametrize(("path", "fields"), OF_SCHEMA)
def test_a_schema_is_kept_to_under_every_name(app: App, path: str, fields: dict[str, Any]) -> None:
    text, reason = said(ask(app, path, **fields).json)
    assert reason == "stop"
    assert jsonschema_rs.is_valid(PERSON, json.loads(text))


@pytest.mark.parametrize(("path", "fields"), OF_TEXT)
def test_other_forms_are_kept_to(app: App, path: str, fields: dict[str, Any]) -> None:
    assert said(ask(app, path, **fields).json) in [("00-0", "stop"), ("11-1", "stop")]


@pytest.mark.parametrize(("path", "fields"), OF_OBJECT)
def test_any_object_will_do(app: App, path: str, fields: dict[str, Any]) -> None:
    text, reason = said(ask(app, path, **fields).json)
    assert reason == "stop"
    assert isinstance(json.loads(text), dict)


def test_what_asks_for_any_text_asks_for_nothing(app: App) -> None:
    for path, fields in (
        (CHAT, {"response_format": {"type": "text"}, "grammar": ""}),
        ("/api/chat", {"format": ""}),
    ):
        assert "hello" in said(ask(app, path, **fields).json)[0].lower()


def test_a_stream_says_the_same_and_what_is_said_does_not_change(app: App) -> None:
    wanted: dict[str, Any] = {"response_format": FORMAT, "seed": 1}
    whole, _ = said(ask(app, CHAT, **wanted).json)
    answer = ask(app, CHAT, **wanted, stream=True, logprobs=True)
    deltas = [event["choices"][0]["delta"] for event in sse_events(answer.get_data())]
    assert "".join(delta.get("content", "") for delta in deltas) == whole


def test_what_was_cut_says_length_and_is_not_mended(app: App) -> None:
    text, reason = said(ask(app, CHAT, response_format=FORMAT, max_tokens=5).json)
    assert (text, reason) == ('{"nam', "length")


def test_several_answers_each_have_their_own(app: App) -> None:
    choices = ask(app, CHAT, response_format=FORMAT, n=3, temperature=1).json["choices"]
    for choice in choices:
        assert jsonschema_rs.is_valid(PERSON, json.loads(choice["message"]["content"]))
    answers = ask(app, "/prompt", prompt=["a", "b"], regex=DIGITS).json["response"]
    assert answers == ["00-0", "00-0"]


@pytest.mark.parametrize(
    ("path", "fields", "param", "words"),
    [
        (CHAT, {"response_format": {"type": "json_schema"}},
         "response_format.json_schema.schema", ""),
        (CHAT, {"response_format": {"type": "xml"}}, "response_format.type", ""),
        (CHAT, {"response_format": FORMAT, "regex": "a"}, "regex", "one form"),
        (CHAT, {"response_format": FORMAT, "stop": "x"}, "stop", "response_format"),
        (CHAT, {"response_format": FORMAT, "ignore_eos": True}, "ignore_eos", ""),
        (CHAT, {"response_format": FORMAT, "min_tokens": 1}, "min_tokens", ""),
        (CHAT, {"response_format": FORMAT, "stop_token_ids": [7]}, "stop_token_ids", ""),
        (CHAT, {"structured_outputs": {"regex": "a", "choice": ["a"]}},
         "structured_outputs.choice", ""),
        (CHAT, {"structured_outputs": {"structural_tag": "a"}},
         "structured_outputs.structural_tag", ""),
        (TEXT, {"guided_regex": "("}, "guided_regex", "unclosed group"),
        (TEXT, {"guided_json": "{"}, "guided_json", "no JSON"),
        (TEXT, {"guided_json": "3"}, "guided_json", "an object"),
        (TEXT, {"guided_choice": []}, "guided_choice", ""),
        (TEXT, {"grammar": "root ::= nope"}, "grammar", "nope"),
        (TEXT, {"grammar": "start: <[4]>"}, "grammar", "no token"),
        (TEXT, {"grammar": 'start: %json {"x-guidance": {}}'}, "grammar", "%json"),
        (TEXT, {"guided_regex": "\ud800"}, "guided_regex", "surrogate"),
        (TEXT, {"guided_choice": ["\ud800"]}, "guided_choice", "surrogate"),
        (TEXT, {"guided_json": {"multipleOf": 1000003}}, "guided_json", "10,000"),
        (TEXT, {"structured_outputs": {}}, "structured_outputs", "nothing"),
        ("/prompt", {"regex": "a" * 70_000}, "regex", "65,536"),
        ("/prompt", {"regex": "a", "stop": ["b"]}, "stop", "regex"),
        ("/api/chat", {"format": "xml"}, "format", "json"),
        ("/api/chat", {"format": "json", "options": {"stop": ["a"]}}, "options.stop", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused_by_name(
    app: App, path: str, fields: dict[str, Any], param: str, words: str
) -> None:
    answer = ask(app, path, **fields)
    assert answer.status_code == 400
    error = answer.json["error"]
    if isinstance(error, str):
        assert param in error
    else:
        assert assert_error_form(answer)["param"] == param
        error = error["message"]
    assert words in error


def _in(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a/b": {"type": "array", "items": schema}}}


DEEP: Any = {}
for _ in range(40):
    DEEP = {"properties": {"a": DEEP}}


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        (_in({"type": "array", "uniqueItems": True}), "#/properties/a~1b/items: "),
        (_in({"not": {"type": "string"}}), "#/properties/a~1b/items: "),
        (_in({"type": "string", "nullable": True}), "#/properties/a~1b/items/nullable: "),
        (_in({"anyOf": [{"type": "string"}, {"type": "sting"}]}),
         "#/properties/a~1b/items/anyOf/1: "),
        (_in({"type": "string", "pattern": "a(?=b)"}), "look-around"),
        (_in({"type": "string", "format": "iri"}), "#/properties/a~1b/items: "),
        (_in({"$ref": "http://example.com"}), "#/properties/a~1b/items: "),
        (_in({"$ref": "#/$defs/no"}), "#/properties/a~1b/items: "),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "#: "),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "#: "),
        ({"$ref": "#"}, ""),
        (False, ""),
        (DEEP, "too deeply"),
        ({"enum": ["x" * 70_000]}, "65,536"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_kept_to_is_refused_with_its_place(
    app: App, schema: Any, where: str
) -> None:
    answer = ask(app, "/prompt", response_schema=schema)
    assert answer.status_code == 400
    error = assert_error_form(answer)
    assert error["param"] == "response_schema"
    assert where in error["message"]


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"x-guidance": {"whitespace_flexible": False}, "type": "object", "title": "T"},
        {"type": "array", "items": {"type": "string", "format": "int32"}, "uniqueItems": False},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": "#/$defs/a",
         "$defs": {"a": {"type": "integer", "description": "d", "examples": [1]}}},
    ],
)  # fmt: skip
def test_what_only_remarks_is_no_reason_to_refuse(app: App, schema: Any) -> None:
    answer = ask(app, "/prompt", response_schema=schema)
    assert answer.status_code == 200
    json.loads(answer.json["response"])


@pytest.fixture
def gemma4(serve: Serve) -> App:
    """A model with tools and thoughts."""
    app = serve(gemma4=True, context_length=2048, chunk=2048)
    app.runner.says = "anything"
    return app


def message_of(answer: Any) -> Any:
    return answer.json["choices"][0]["message"]


def test_a_tool_can_be_required(gemma4: App) -> None:
    answer = ask(gemma4, CHAT, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    [call] = message_of(answer)["tool_calls"]
    assert jsonschema_rs.is_valid(PERSON, json.loads(call["function"]["arguments"]))
    assert answer.json["choices"][0]["finish_reason"] == "tool_calls"
    assert message_of(answer)["content"] is None


def test_a_tool_can_be_named(gemma4: App) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    choice = {"type": "function", "function": {"name": "other"}}
    answer = ask(gemma4, CHAT, tools=[TOOL, other], tool_choice=choice, parallel_tool_calls=False)
    [call] = message_of(answer)["tool_calls"]
    assert call["function"]["name"] == "other"
    assert "declaration:look" in shown(gemma4.runner.prompts[-1])


def test_a_required_call_may_follow_a_thought(gemma4: App) -> None:
    gemma4.runner.says = "<|channel>thought\nHm.<channel|>no call"
    fields: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required", "reasoning_effort": "low"}
    message = message_of(ask(gemma4, CHAT, **fields, parallel_tool_calls=False))
    assert message["reasoning_content"] == "Hm."
    assert len(message["tool_calls"]) == 1


def test_arguments_of_a_strict_tool_fit_its_schema(gemma4: App) -> None:
    gemma4.runner.says = 'I look. <|tool_call>call:look{age:<|"|>x<|"|>}<tool_call|><|tool_call>'
    message = message_of(ask(gemma4, CHAT, tools=[STRICT], parallel_tool_calls=False))
    assert message["content"] == "I look. "
    [call] = message["tool_calls"]
    assert jsonschema_rs.is_valid(PERSON, json.loads(call["function"]["arguments"]))


def test_a_format_binds_behind_the_thought(gemma4: App) -> None:
    gemma4.runner.says = "<|channel>thought\nHm.<turn|><channel|>hello"  # no end in a thought
    fields: dict[str, Any] = {"response_format": FORMAT, "reasoning_effort": "high"}
    message = message_of(ask(gemma4, CHAT, **fields))
    assert message["reasoning_content"].startswith("Hm.")
    assert jsonschema_rs.is_valid(PERSON, json.loads(message["content"]))
    chat = ask(gemma4, "/api/chat", format=PERSON).json["message"]
    assert chat["thinking"].startswith("Hm.")
    assert jsonschema_rs.is_valid(PERSON, json.loads(chat["content"]))


STRICT = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]


def test_a_format_leaves_room_for_calls(gemma4: App) -> None:
    message = message_of(ask(gemma4, CHAT, response_format=FORMAT, tools=[STRICT]))
    [*_, call] = message["tool_calls"]
    assert jsonschema_rs.is_valid(PERSON, json.loads(call["function"]["arguments"]))
    gemma4.runner.says = "{"
    message = message_of(ask(gemma4, CHAT, response_format=FORMAT, tools=[STRICT]))
    assert jsonschema_rs.is_valid(PERSON, json.loads(message["content"]))
    must: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False}
    message = message_of(ask(gemma4, CHAT, response_format=FORMAT, tools=[TOOL], **must))
    assert (message["content"], len(message["tool_calls"])) == (None, 1)


def test_only_strict_tools_have_to_have_a_schema_that_can_be_kept_to(gemma4: App) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    loose = {"type": "function", "function": {"name": "loose", "parameters": odd}}
    assert ask(gemma4, CHAT, tools=[STRICT, loose]).status_code == 200
    assert ask(gemma4, CHAT, tools=[STRICT, loose], tool_choice="none", stop="x").status_code == 200
    answer = ask(gemma4, CHAT, tools=[STRICT, loose], tool_choice="required")
    assert "loose, #/properties/a: " in assert_error_form(answer)["message"]


def test_a_thought_can_neither_call_nor_hide_the_answer(gemma4: App) -> None:
    gemma4.runner.says = "<|channel>thought\nhm<|tool_call>x<channel|>{"
    fields: dict[str, Any] = {"response_format": FORMAT, "reasoning_effort": "high"}
    message = message_of(ask(gemma4, CHAT, **fields))
    assert jsonschema_rs.is_valid(PERSON, json.loads(message["content"]))


def test_white_space_of_a_bound_answer_stays(gemma4: App) -> None:
    gemma4.runner.says = "<|channel>thought\nhm<channel|>\n\nyes"
    message = message_of(ask(gemma4, CHAT, regex="\n\nyes", reasoning_effort="high"))
    assert (message["content"], message["reasoning_content"]) == ("\n\nyes", "hm")


def test_a_long_answer_leaves_others_their_grammar(serve: Serve) -> None:
    """Copies of one automaton would share its states and their bound."""
    app = serve(context_length=8192, chunk=8192)
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 1500}},
              "required": ["a"], "additionalProperties": False}  # fmt: skip
    for text in ("x" * 1400, "abc"):
        prompt = json.dumps({"a": text}, separators=(",", ":"))
        answer = ask(app, "/prompt", prompt=prompt, response_schema=schema, sampling_steps=3000)
        assert json.loads(answer.json["response"]) == {"a": text}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}},
         "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "required", "min_tokens": 1}, "min_tokens"),
        ({"tools": [TOOL], "response_format": FORMAT, "stop": "x"}, "stop"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "strict": True,
                     "parameters": {"properties": {"a": {"type": "array", "uniqueItems": True}}}}}
                ]
            },
            "tools",
        ),
    ],
)  # fmt: skip
def test_what_no_call_can_be_is_refused(gemma4: App, fields: dict[str, Any], param: str) -> None:
    answer = ask(gemma4, CHAT, **fields)
    assert answer.status_code == 400
    assert assert_error_form(answer)["param"] == param


def test_the_fake_has_all_tags() -> None:
    assert None not in (*gemma4_tokenizer().tags.call, *gemma4_tokenizer().tags.thought)
