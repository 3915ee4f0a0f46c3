"""The official Ollama client for Python, unmodified, against a server process."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import ollama
import pytest
from pydantic import BaseModel

from testing.server import LONG, Server
from testing.waiting import wait_until

pytestmark = pytest.mark.slow

HI = [{"role": "user", "content": "Hi"}]
ANSWER = "user\nHi"  # the template has an <end_of_turn> behind it
GREEDY = {"temperature": 0}


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    with connect(server) as client:
        yield client


@pytest.fixture
def slow_client(slow_server: Server) -> Iterator[ollama.Client]:
    with connect(slow_server) as client:
        yield client


def connect(server: Server) -> closing[ollama.Client]:
    return closing(ollama.Client(host=f"http://127.0.0.1:{server.port}"))


def test_generate_raw_and_in_the_template(client: ollama.Client) -> None:
    raw = client.generate("fake", "hello", raw=True, options=GREEDY)
    assert (raw.response, raw.done, raw.done_reason) == ("hello", True, "stop")
    assert (raw.prompt_eval_count, raw.eval_count) == (6, 6)
    assert raw.total_duration is not None
    assert raw.eval_duration is not None
    assert raw.total_duration >= raw.eval_duration > 0
    told = client.generate("fake:latest", "Hi", system="Be brief.", options=GREEDY)
    assert told.response == "user\nBe brief.\n\nHi"
    assert raw.context is None


def test_context_continues_a_conversation(client: ollama.Client) -> None:
    first = client.generate("fake", "Hi", options=GREEDY)
    assert first.context is not None
    second = client.generate("fake", "And?", context=list(first.context), options=GREEDY)
    assert second.prompt_eval_count is not None
    alone = client.generate("fake", "And?", options=GREEDY).prompt_eval_count
    assert alone is not None
    # the closed turn: <end_of_turn> and a line's end, in place of the second <bos>
    assert second.prompt_eval_count == len(first.context) + 2 + alone - 1


def test_generate_streamed(client: ollama.Client) -> None:
    parts = list(client.generate("fake", "hello", raw=True, stream=True, options=GREEDY))
    assert "".join(part.response or "" for part in parts) == "hello"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == 6


def test_logprobs(client: ollama.Client) -> None:
    """In the fake, what is drawn has the probability 1/2, and the next ids half of it each."""
    fields: dict[str, object] = {
        "raw": True,
        "options": GREEDY,
        "logprobs": True,
        "top_logprobs": 1,
    }
    whole = client.generate("fake", "hey", **fields)  # type: ignore[call-overload]
    assert [token.token for token in whole.logprobs] == list("hey")
    assert all(token.logprob == pytest.approx(-math.log(2)) for token in whole.logprobs)
    parts = client.generate("fake", "hey", stream=True, **fields)  # type: ignore[call-overload]
    assert [token for part in parts for token in part.logprobs or []] == whole.logprobs


def test_chat(client: ollama.Client) -> None:
    answer = client.chat("fake", HI, options=GREEDY)
    assert (answer.message.role, answer.message.content) == ("assistant", ANSWER)
    parts = list(client.chat("fake", HI, stream=True, options=GREEDY))
    assert "".join(part.message.content or "" for part in parts) == ANSWER
    assert parts[-1].done_reason == "stop"


def test_options(client: ollama.Client) -> None:
    def ask(**options: object) -> ollama.GenerateResponse:
        return client.generate("fake", "hello", raw=True, options={**GREEDY, **options})

    cut = ask(num_predict=2, num_ctx=64, num_thread=4, repeat_penalty=1.0)
    assert (cut.response, cut.done_reason) == ("he", "length")
    assert ask(stop=["lo"]).response == "hel"
    assert ask(temperature=0.8, seed=1).response == "HELLO"
    assert ask(temperature=0.8, seed=2).response == "hello"


def test_what_is_there(client: ollama.Client) -> None:
    [model] = client.list().models
    assert model.model == "fake"
    assert model.digest is not None
    assert len(model.digest) == 64
    [running] = client.ps().models
    assert (running.model, running.context_length) == ("fake", 2048)
    assert client.show("fake").capabilities == ["completion", "tools"]
    assert client.generate("fake").done_reason == "load"
    assert client.chat("fake").done_reason == "load"


@pytest.mark.parametrize(
    ("status", "message", "fields"),
    [
        (404, "model 'other' not found", {"model": "other"}),
        (400, "suffix is not supported", {"suffix": "b"}),
        (400, "options.typical_p is not supported", {"options": {"typical_p": 0.5}}),
        (400, "options.repeat_penalty: ", {"options": {"repeat_penalty": 0}}),
        (400, "options.temperature: ", {"options": {"temperature": -1}}),
        (400, "options.num_ctx: ", {"options": {"num_ctx": 1 << 20}}),
        (400, "the prompt of 5001 tokens", {"prompt": "x" * 5000}),
        (400, "model 'fake' stays in memory", {"prompt": "", "keep_alive": 0}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_is_told(
    client: ollama.Client, status: int, message: str, fields: dict[str, object]
) -> None:
    arguments: dict[str, object] = {"model": "fake", "prompt": "a", "raw": True, **fields}
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate(**arguments)  # type: ignore[call-overload]
    assert caught.value.status_code == status
    assert caught.value.error.startswith(message)


def _leave_early(client: ollama.Client) -> Iterator[ollama.GenerateResponse]:
    return client.generate("fake", LONG, raw=True, stream=True, options=GREEDY)


def test_leaving_a_stream_frees_the_slot(slow_server: Server, slow_client: ollama.Client) -> None:
    parts = _leave_early(slow_client)
    assert next(parts).response == "x"
    assert slow_server.load() == (1, 0)
    parts.close()  # type: ignore[attr-defined]  # it is a generator
    wait_until(lambda: slow_server.load() == (0, 0))


def test_its_time_limit_frees_the_slot(slow_server: Server) -> None:
    host = f"http://127.0.0.1:{slow_server.port}"
    with closing(ollama.Client(host=host, timeout=0.3)) as hasty, pytest.raises(httpx.ReadTimeout):
        hasty.generate("fake", LONG, raw=True)
    wait_until(lambda: slow_server.load() == (0, 0))


def test_a_full_line_is_429(slow_server: Server, slow_client: ollama.Client) -> None:
    parts = _leave_early(slow_client)
    next(parts)
    asking = threading.Thread(
        target=lambda: slow_client.generate("fake", "ab", raw=True, options=GREEDY)
    )
    asking.start()
    wait_until(lambda: slow_server.load() == (1, 1))
    with pytest.raises(ollama.ResponseError) as caught:
        slow_client.generate("fake", "ab", raw=True)
    assert caught.value.status_code == 429
    parts.close()  # type: ignore[attr-defined]
    asking.join()


def look(at: str) -> str:
    """What is there.

    Args:
        at: where
    """
    return f"{at}: bricks"


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_and_answered(tools_server: Server, stream: bool) -> None:
    messages: list[ollama.Message] = [ollama.Message(role="user", content="What is there?")]
    with connect(tools_server) as client:
        ask: Any = client.chat  # its type has a variant for each kind of stream
        answer = ask("fake", messages, tools=[look], stream=stream)
        parts = [part.message for part in (answer if stream else [answer])]
        assert "".join(part.thinking or "" for part in parts) == "Hm."
        assert "".join(part.content or "" for part in parts) == "I look. "
        calls = [call for part in parts for call in part.tool_calls or ()]
        assert [call.function.arguments for call in calls] == [{"at": 'a "wall"'}] * 2
        messages.append(ollama.Message(role="assistant", tool_calls=calls))
        messages += [
            ollama.Message(role="tool", content=look(**call.function.arguments), tool_name="look")
            for call in calls
        ]
        assert client.chat("fake", messages, tools=[look]).message.content == "I saw it."


class Person(BaseModel):
    """What the answer has to be."""

    name: str
    age: int


def test_an_answer_has_the_format_s_schema(client: ollama.Client) -> None:
    schema = Person.model_json_schema()
    answer = client.chat("fake", HI, format=schema, options=GREEDY)
    Person.model_validate_json(answer.message.content or "")
    Person.model_validate_json(client.generate("fake", "Hi", format=schema).response or "")
    assert isinstance(json.loads(client.generate("fake", "Hi", format="json").response or ""), dict)
