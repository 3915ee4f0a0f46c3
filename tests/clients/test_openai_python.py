"""The official OpenAI client for Python, unmodified, against a server process."""

import json
import math
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from testing.server import LONG, Server
from testing.waiting import wait_until

pytestmark = pytest.mark.slow

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
ANSWER = "user\nHi"  # the template has an <end_of_turn> behind it


def connect(server: Server, retries: int = 0) -> openai.OpenAI:
    base_url = f"http://127.0.0.1:{server.port}/v1"
    return openai.OpenAI(base_url=base_url, api_key="none", max_retries=retries, timeout=30)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with connect(server) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HI, temperature=0)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert (choice.finish_reason, answer.model) == ("stop", "fake")
    assert answer.usage is not None
    # <start_of_turn>, the text, and the <end_of_turn> that ended it
    assert answer.usage.completion_tokens == len(ANSWER) + 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(ANSWER) + 2


def test_chat_takes_parts_developers_and_what_it_need_not_know(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "Hi"}]},
        ],
        temperature=0,
        user="ann",
        metadata={"a": "b"},
        store=False,
        frequency_penalty=0,
        response_format={"type": "text"},
    )
    assert answer.choices[0].message.content == "user\nBe brief.\n\nHi"


def test_chat_streamed(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake",
            messages=HI,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *with_choice, last = chunks
    deltas = [chunk.choices[0].delta for chunk in with_choice]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    reasons = [chunk.choices[0].finish_reason for chunk in with_choice]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert last.choices == []
    assert [chunk.usage is None for chunk in chunks] == [True] * len(with_choice) + [False]
    assert last.usage is not None
    assert last.usage.completion_tokens == len(ANSWER) + 2


def test_completions_of_texts_and_ids_with_echo_and_n(client: openai.OpenAI) -> None:
    complete = client.completions.create
    assert complete(model="fake", prompt="hello", temperature=0).choices[0].text == "hello"
    both = complete(model="fake", prompt=["ab", "cd"], n=2, temperature=0, echo=True)
    assert [choice.text for choice in both.choices] == ["abab", "abab", "cdcd", "cdcd"]
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    found = client.post("/../tokenize", cast_to=object, body={"prompt": "xy"})
    assert isinstance(found, dict)
    ids = found["tokens"]
    assert len(ids) == 3  # <bos>, x, y
    assert complete(model="fake", prompt=ids, temperature=0).choices[0].text == "xy"
    cut = complete(model="fake", prompt="hello", temperature=0, max_tokens=2)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == ("he", "length")
    stopped = complete(model="fake", prompt="hello", temperature=0, stop=["lo", "never"])
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("hel", "stop")


def test_sampling_options_arrive(client: openai.OpenAI) -> None:
    """The default temperature is 1; the fake swaps the case then, if the seed is odd."""
    complete = client.completions.create
    assert complete(model="fake", prompt="ab", seed=1).choices[0].text == "AB"
    assert complete(model="fake", prompt="ab", seed=2).choices[0].text == "ab"
    assert complete(model="fake", prompt="ab", seed=-1).choices[0].text == "AB"
    two = complete(model="fake", prompt="ab", seed=1, n=2)
    assert [choice.text for choice in two.choices] == ["AB", "ab"]
    assert complete(model="fake", prompt="ab", seed=1, top_p=0).choices[0].text == "ab"


def test_several_choices_streamed(client: openai.OpenAI) -> None:
    texts = {0: "", 1: "", 2: "", 3: ""}
    reasons = {}
    for chunk in client.completions.create(
        model="fake", prompt=["abc", "de"], n=2, seed=0, stream=True, echo=True
    ):
        [choice] = chunk.choices
        assert choice.index not in reasons
        texts[choice.index] += choice.text
        if choice.finish_reason is not None:
            reasons[choice.index] = choice.finish_reason
    assert texts == {0: "abcabc", 1: "abcABC", 2: "dede", 3: "deDE"}
    assert reasons == dict.fromkeys(range(4), "stop")


def test_chat_logprobs(client: openai.OpenAI) -> None:
    """In the fake, what is drawn has the probability 1/2, and the next ids half of it each."""
    answer = client.chat.completions.create(
        model="fake", messages=HI, temperature=0, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    # the template's <start_of_turn> has no text
    assert [token.token for token in logprobs.content] == ["<start_of_turn>", *ANSWER]
    assert all(token.logprob == pytest.approx(-math.log(2)) for token in logprobs.content)
    assert logprobs.content[1].bytes == [ord("u")]
    assert [top.token for top in logprobs.content[1].top_logprobs] == ["u", "v"]
    streamed = [
        token
        for chunk in client.chat.completions.create(
            model="fake", messages=HI, temperature=0, logprobs=True, top_logprobs=2, stream=True
        )
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == logprobs.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_is_scored(client: openai.OpenAI, stream: bool) -> None:
    """As evaluation harnesses ask: the prompt echoed, with logprobs, and nothing more."""
    body: dict[str, object] = {"model": "fake", "prompt": "héy", "max_tokens": 0, "echo": True}
    whole = client.completions.create(**body, logprobs=1)  # type: ignore[call-overload]
    if stream:
        chunks = client.completions.create(**body, logprobs=1, stream=True)  # type: ignore[call-overload]
        first = next(iter(chunks))
        assert first.choices[0].logprobs == whole.choices[0].logprobs
        assert first.choices[0].text == "héy"
        assert [chunk.choices[0].finish_reason for chunk in chunks] == ["length"]
        return
    [choice] = whole.choices
    assert (choice.text, choice.finish_reason) == ("héy", "length")
    assert whole.usage.completion_tokens == 0
    found = choice.logprobs
    assert found.tokens == ["<bos>", "h", "bytes:\\xc3", "bytes:\\xa9", "y"]
    assert found.text_offset == [0, 0, 1, 1, 2]
    assert found.token_logprobs == [None, *[pytest.approx(-math.log(2))] * 4]
    assert found.top_logprobs[0] is None
    assert list(found.top_logprobs[1]) == ["h"]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model:7b")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"suffix": "x"}, "suffix", "unsupported_field"),
        ({"best_of": 3}, "best_of", "unsupported_field"),
        ({"prompt": "x" * 5000}, "prompt", "context_length_exceeded"),
        ({"prompt": ["a", "x" * 5000]}, "prompt[1]", "context_length_exceeded"),
        ({"prompt": [2, 10**6]}, "prompt", "invalid_value"),
        ({"n": 65}, "n", "invalid_value"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(
    client: openai.OpenAI, fields: dict[str, object], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", cast_to=object, body={"model": "fake", "prompt": "a", **fields})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
    ],
    ids=str,
)
def test_what_chat_cannot_do_is_named(
    client: openai.OpenAI, fields: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(
            "/chat/completions", cast_to=object, body={"model": "fake", "messages": HI, **fields}
        )
    assert caught.value.param == param


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=HI)
    assert caught.value.code == "model_not_found"


def test_leaving_a_stream_frees_the_slot(slow_server: Server) -> None:
    with connect(slow_server) as client:
        stream = client.completions.create(
            model="fake", prompt=LONG, max_tokens=500, temperature=0, stream=True
        )
        next(iter(stream))
        assert slow_server.load() == (1, 0)
        stream.close()
    wait_until(lambda: slow_server.load() == (0, 0))


def test_a_deadline_ends_an_answer_and_is_not_tried_again(slow_server: Server) -> None:
    with connect(slow_server, retries=2) as client:
        before = _count(slow_server, 504)
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(
                model="fake",
                prompt=LONG,
                max_tokens=500,
                extra_headers={"X-Request-Timeout-Ms": "200"},
            )
        assert (caught.value.status_code, caught.value.code) == (504, "deadline")
        assert _count(slow_server, 504) == before + 1


def test_its_own_time_limit_frees_the_slot(slow_server: Server) -> None:
    with connect(slow_server) as client, pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(
            model="fake", prompt=LONG, max_tokens=500
        )
    wait_until(lambda: slow_server.load() == (0, 0))


def test_a_full_line_is_tried_again_until_there_is_room(slow_server: Server) -> None:
    with connect(slow_server) as hasty, connect(slow_server, retries=5) as patient:
        streams = [
            hasty.completions.create(
                model="fake", prompt=LONG, max_tokens=500, temperature=0, stream=True
            )
        ]
        next(iter(streams[0]))
        waiting = threading.Thread(
            target=lambda: hasty.completions.create(model="fake", prompt=LONG, max_tokens=3)
        )
        waiting.start()
        wait_until(lambda: slow_server.load() == (1, 1))
        with pytest.raises(openai.RateLimitError):
            hasty.completions.create(model="fake", prompt="a")
        threading.Timer(0.3, streams[0].close).start()
        answer = patient.completions.create(model="fake", prompt="ab", temperature=0)
        assert answer.choices[0].text == "ab"
        waiting.join()


def _count(server: Server, status: int) -> float:
    metrics = server.metrics()
    return metrics.get(f'gemma_requests_total{{route="/v1/completions",status="{status}"}}', 0.0)


def look(at: str) -> str:
    """What is there."""
    return f"{at}: bricks"


LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}


def test_tools_are_called_and_answered(tools_server: Server) -> None:
    ask: Any = {"model": "fake", "tools": [LOOK], "reasoning_effort": "high"}
    messages: list[Any] = [{"role": "user", "content": "What is there?"}]
    with connect(tools_server) as client:
        [choice] = client.chat.completions.create(messages=messages, **ask).choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I look. "
        assert choice.message.reasoning_content == "Hm."  # not OpenAI's
        messages.append(choice.message)
        for call in choice.message.tool_calls or ():
            assert call.type == "function"
            content = look(**json.loads(call.function.arguments))
            assert content == 'a "wall": bricks'
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        assert len(messages) == 4
        [choice] = client.chat.completions.create(messages=messages, **ask).choices
    assert (choice.finish_reason, choice.message.content) == ("stop", "I saw it.")


def test_the_stream_helper_gathers_calls(tools_server: Server) -> None:
    messages: Any = [{"role": "user", "content": "What is there?"}]
    with (
        connect(tools_server) as client,
        client.chat.completions.stream(model="fake", messages=messages, tools=[LOOK]) as stream,
    ):
        [choice] = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    arguments = [call.function.arguments for call in choice.message.tool_calls or ()]
    assert [json.loads(each) for each in arguments] == [{"at": 'a "wall"'}] * 2


class Person(BaseModel):
    """What the answer has to be."""

    name: str
    age: Annotated[int, Field(ge=0, le=150)]
    friends: list["Person"]


def test_an_answer_is_parsed_into_a_model(client: openai.OpenAI) -> None:
    """The helper sends the schema, strict, and reads what comes."""
    asked: Any = {"model": "fake", "messages": HI, "response_format": Person, "temperature": 0}
    [choice] = client.chat.completions.parse(**asked).choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Person)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**asked, max_tokens=3)


def test_arguments_are_parsed_into_a_model(tools_server: Server) -> None:
    tool: Any = openai.pydantic_function_tool(Person)
    messages: Any = [{"role": "user", "content": "Who?"}]
    with connect(tools_server) as client:
        [choice] = client.chat.completions.parse(
            model="fake", messages=messages, tools=[tool], tool_choice="required"
        ).choices
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls or ():
        assert isinstance(call.function.parsed_arguments, Person)
