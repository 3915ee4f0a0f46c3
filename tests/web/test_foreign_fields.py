"""What other servers take is honoured, refused by name, or harmless: nothing is only ignored."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gemma_server.api.ollama.schema import ChatBody, GenerateBody, Options
from gemma_server.api.openai.schema import ChatCompletionBody, CompletionBody
from testing.answers import assert_error_form
from tests.web.conftest import App
from tests.web.dialects import ask

_FILE = Path(__file__).parents[2] / "testing" / "foreign_fields.toml"
_SERVERS: dict[str, dict[str, str]] = tomllib.loads(_FILE.read_text())
_HARMLESS = _SERVERS.pop("harmless")
EMBEDDINGS = _SERVERS.pop("embeddings")  # see test_embeddings.py
HARMLESS = frozenset(_HARMLESS["fields"].split())
HARMLESS_OPTIONS = frozenset(_HARMLESS["ollama_options"].split())
FIELDS = {server: said["fields"].split() for server, said in _SERVERS.items()}
OPENAI_S = sorted(
    {field for server in FIELDS for field in FIELDS[server] if "ollama" not in server}
)
ROUTES: dict[str, type[ChatCompletionBody | CompletionBody]] = {
    "/v1/chat/completions": ChatCompletionBody,
    "/v1/completions": CompletionBody,
}
# Fields of the other route, which have no meaning on this one.
ELSEWHERE = {
    "/v1/chat/completions": {"prompt", "suffix"},
    "/v1/completions": {
        *("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "functions"),
        *("function_call", "modalities", "audio", "web_search_options", "documents"),
        *("chat_template", "chat_template_kwargs"),
        *("add_generation_prompt", "continue_final_message", "parallel_tool_calls"),
        *("reasoning_effort", "reasoning_format", "include_reasoning", "separate_reasoning"),
        *("stream_reasoning", "thinking_token_budget", "parse_tool_calls"),
    },
}


def test_the_list_is_long_and_says_where_it_is_from() -> None:
    assert len(OPENAI_S) > 150
    assert all(said["source"] for said in _SERVERS.values())


@pytest.mark.parametrize("path", ROUTES)
def test_every_field_is_in_one_place(path: str) -> None:
    body = ROUTES[path]
    places = [set(body.model_fields), set(body.REFUSED), set(HARMLESS), ELSEWHERE[path]]
    for field in OPENAI_S:
        assert sum(field in place for place in places) == 1, field


def test_nothing_is_harmless_that_no_server_has() -> None:
    assert set(OPENAI_S) >= HARMLESS
    assert set(FIELDS["ollama_options"]) >= HARMLESS_OPTIONS


def test_every_field_of_ollama_s_is_in_one_place() -> None:
    places = [set(Options.model_fields), set(Options.REFUSED), set(HARMLESS_OPTIONS)]
    for field in FIELDS["ollama_options"]:
        assert sum(field in place for place in places) == 1, field
    for field in FIELDS["ollama"]:
        for body in (GenerateBody, ChatBody):
            assert not (field in body.model_fields and field in body.REFUSED), field
        known = (GenerateBody.model_fields, ChatBody.model_fields, GenerateBody.REFUSED)
        assert any(field in fields for fields in known), field


class Odd:
    """A value that asks for nothing on no server."""

    number, text = 7.25, "something"


@pytest.mark.parametrize("path", ROUTES)
def test_what_is_refused_is_refused_by_name(app: App, path: str) -> None:
    for field in ROUTES[path].REFUSED:
        for value in (Odd.number, Odd.text, [Odd.text], {Odd.text: Odd.number}):
            response = ask(app, path, **{field: value})
            error = assert_error_form(response)
            assert (response.status_code, error["code"]) == (400, "unsupported_field"), field
            assert error["param"] == field


@pytest.mark.parametrize("path", ROUTES)
def test_what_asks_for_nothing_and_what_is_harmless_pass(app: App, path: str) -> None:
    nothing: dict[str, Any] = {
        field: values[0] for field, values in ROUTES[path].REFUSED.items() if values
    }
    harmless = dict.fromkeys(HARMLESS, Odd.text)
    assert ask(app, path, **nothing, **harmless).status_code == 200


def test_options_of_ollama_s_too(app: App) -> None:
    for field in Options.REFUSED.keys() - {"penalize_newline"}:
        response = ask(app, "/api/generate", options={field: Odd.number})
        assert response.status_code == 400
        assert response.json is not None
        assert response.json["error"].startswith(f"options.{field} is not supported")
    assert ask(app, "/api/generate", options=dict.fromkeys(HARMLESS_OPTIONS, 7)).status_code == 200


def test_penalties_look_back_as_far_as_they_are_told(app: App) -> None:
    for last_n in (-1, 0, 3):
        response = ask(app, "/v1/completions", repeat_last_n=last_n, repetition_penalty=1.5)
        assert response.status_code == 200
    windows = [how.penalty_window for how in app.runner.samplings[-3:]]
    assert windows == [1 << 30, 0, 3]
