"""The Open Inference Protocol's routes, and Triton's generate, on fakes: one that repeats its
prompts, and one that embeds."""

import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from flask.testing import FlaskClient
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from gemma_server import __version__
from gemma_server.serving.models import Models
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import Settings
from gemma_server.web.app import make_app
from testing.answers import parse_json
from testing.fake_embedding import WIDTH, FakeEmbeddingRunner, fake_embedding_model, fake_vector
from testing.waiting import wait_until
from tests.web.conftest import App, Serve, Served

INFER, GENERATE = "/v2/models/fake/infer", "/v2/models/fake/generate"
STREAM = "/v2/models/fake/generate_stream"


def tensor(name: str, *data: Any, datatype: str = "BYTES", **fields: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": [*data], **fields}


def text_input(*texts: Any, **fields: Any) -> dict[str, Any]:
    return tensor("text_input", *texts, **fields)


def post(client: FlaskClient, path: str, **body: Any) -> TestResponse:
    return client.post(path, data=json.dumps(body), content_type="application/json")


def answer(client: FlaskClient, path: str, **body: Any) -> Any:
    response = post(client, path, **body)
    assert response.status_code == 200, response.text
    return parse_json(response.data)


def infer(client: FlaskClient, *inputs: Any, path: str = INFER, **body: Any) -> dict[str, Any]:
    """The data of each output; all of them have one shape."""
    outputs = answer(client, path, inputs=inputs, **body)["outputs"]
    assert all(each["shape"] == inputs[0]["shape"] for each in outputs)
    return {each["name"]: each["data"] for each in outputs}


def refusal(response: TestResponse, status: int = 400) -> str:
    """The message of an error, which has the protocol's form."""
    assert response.status_code == status, response.text
    document = parse_json(response.data)
    assert [*document] == ["error"]
    return str(document["error"])


def events(response: TestResponse) -> list[Any]:
    """The documents of a stream, whose events are all JSON."""
    assert response.content_type == "text/event-stream; charset=utf-8"
    *found, rest = response.text.split("\n\n")
    assert rest == ""
    return [parse_json(each.removeprefix("data: ")) for each in found]


@pytest.fixture(scope="module")
def embedding() -> Iterator[FlaskClient]:
    loaded = fake_embedding_model(FakeEmbeddingRunner(), lambda error: None)
    models = Models("fake")
    models.registry.adopt(loaded)
    yield make_app(models, Settings(fake=True)).test_client()
    loaded.engine.stop()


def test_what_the_server_and_its_models_are(served: Served, embedding: FlaskClient) -> None:
    client = served.client
    assert client.get("/v2").json == {
        "name": "gemma-server",
        "version": __version__,
        "extensions": ["generate", "model_repository"],
    }
    assert client.get("/v2/models").json == {"models": ["m"]}
    whole = client.get("/v2/models/m").json
    assert whole == client.get("/v2/models/m/versions/1").json
    assert whole is not None
    assert (whole["name"], whole["versions"], whole["platform"]) == ("m", ["1", "3"], "jax")
    assert whole["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}]
    given = answer(client, "/v2/models/m/infer", inputs=[text_input("a")])["outputs"]
    assert [(each["name"], each["datatype"]) for each in whole["outputs"]] == [
        (each["name"], each["datatype"]) for each in given
    ]
    of_vectors = embedding.get("/v2/models/fake").json
    assert of_vectors is not None
    vectors = {"name": "embedding", "datatype": "FP32", "shape": [-1, WIDTH]}
    assert of_vectors["outputs"] == [vectors]


def test_health_follows_the_model(serve: Serve) -> None:
    paths = ("/v2/health/ready", "/v2/models/fake/ready")
    loading, app = serve(loading=True), serve()
    [version] = loading.models.registry.versions()
    version.at("loading weights", 0.25)
    for path in paths:
        response = loading.client.get(path)
        assert "loading weights" in refusal(response, 503)
        assert int(response.headers["Retry-After"]) >= 1
    assert app.client.get(paths[0]).json == {"ready": True}
    assert app.client.get(paths[1]).json == {"name": "fake", "ready": True}
    app.models.drain()
    for path in paths:
        refusal(app.client.get(path), 503)
    for each in (loading, app):
        assert each.client.get("/v2/health/live").json == {"live": True}


@pytest.mark.parametrize(
    ("path", "status"),
    [("n", 404), ("m/versions/9", 404), ("m/versions/x", 404), ("m/versions/2", 503)],
)
def test_versions_that_cannot_answer_say_so_on_every_route(
    served: Served, path: str, status: int
) -> None:
    whole = f"/v2/models/{path}"
    for response in (
        served.client.get(whole),
        served.client.get(f"{whole}/ready"),
        post(served.client, f"{whole}/infer", inputs=[text_input("a")]),
        post(served.client, f"{whole}/generate", text_input="a"),
        post(served.client, f"{whole}/generate_stream", text_input="a"),
    ):
        message = refusal(response, status)
        assert path.replace("/versions/", "@") in message if status == 404 else "broken" in message
    assert isinstance(refusal(served.client.get("/v2/nothing"), 404), str)


def test_a_path_names_the_version_that_answers(served: Served) -> None:
    for path, number in {"m": "3", "m/versions/1": "1", "m@1": "1", "m:stable": "1"}.items():
        assert served.client.get(f"/v2/models/{path}/ready").json == {"name": "m", "ready": True}
        inferred = answer(served.client, f"/v2/models/{path}/infer", inputs=[text_input("a")])
        generated = answer(served.client, f"/v2/models/{path}/generate", text_input="a")
        for found in (inferred, generated):
            assert (found["model_name"], found["model_version"]) == ("m", number)


@hypothesis.given(st.lists(st.text("aé€ \n", min_size=1, max_size=8), min_size=1, max_size=5))
@hypothesis.settings(max_examples=20, deadline=None)
def test_texts_that_are_inferred_together_are_answered_as_each_alone(
    app: App, texts: list[str]
) -> None:
    alone = [answer(app.client, GENERATE, text_input=text) for text in texts]
    together = infer(app.client, text_input(*texts))
    for name, column in together.items():
        assert column == [each[name] for each in alone]
    assert together["text_output"] == texts
    rows = {"shape": [len(texts), 1]}
    assert infer(app.client, text_input(*([text] for text in texts), **rows)) == together
    assert infer(app.client, text_input(*texts, **rows)) == together


def test_the_answer_is_that_of_prompt(app: App) -> None:
    fields: dict[str, Any] = {
        "sampling_steps": 3,
        "stop": "d",
        "temperature": 0.5,
        "seed": 4,
        "top_k": 3,
    }
    whole = app.prompt("abcdef", **fields).json
    assert whole is not None
    expected = {
        "text_output": whole["response"],
        "finish_reason": whole["finish_reason"],
        "num_input_tokens": whole["usage"]["prompt_tokens"],
        "num_output_tokens": whole["usage"]["completion_tokens"],
    }
    head = {"id": "one", "model_name": "fake", "model_version": "1"}
    asked = {"id": "one", "text_input": "abcdef"}
    assert answer(app.client, GENERATE, **asked, parameters=fields) == {**head, **expected}
    assert answer(app.client, GENERATE, **asked, **fields) == {**head, **expected}
    inferred = answer(app.client, INFER, id="one", inputs=[text_input("abcdef")], parameters=fields)
    assert {name: inferred[name] for name in head} == head
    assert {each["name"]: each["data"] for each in inferred["outputs"]} == {
        name: [value] for name, value in expected.items()
    }
    assert "id" not in answer(app.client, GENERATE, text_input="a")


def test_options_reach_the_engine_by_every_way(serve: Serve) -> None:
    app = serve()
    options = {"temperature": 0.5, "top_p": 0.75, "top_k": 5, "seed": 7, "max_tokens": 2}
    more = {"presence_penalty": 0.5, "frequency_penalty": 1.0, "repetition_penalty": 1.5}
    options |= more
    as_strings = json.dumps({name: str(value) for name, value in options.items()})
    found = [
        answer(app.client, GENERATE, text_input="abc", parameters=options)["num_output_tokens"],
        answer(app.client, GENERATE, text_input="abc", **options)["num_output_tokens"],
        *infer(app.client, text_input("abc"), parameters=options)["num_output_tokens"],
        *infer(app.client, text_input("abc"), tensor("sampling_parameters", as_strings))[
            "num_output_tokens"
        ],
    ]
    assert found == [2] * 4
    [first, *others] = app.runner.samplings
    assert others == [first] * 3
    assert (first.temperature, first.top_p, first.top_k, first.seed) == (0.5, 0.75, 5, 7)
    assert {name: getattr(first, name) for name in more} == more


def test_the_input_is_in_the_output_if_that_is_wanted(app: App) -> None:
    wanted = {"exclude_input_in_output": False}
    assert answer(app.client, GENERATE, text_input="ab", **wanted)["text_output"] == "abab"
    texts, as_tensor = text_input("ab", "c"), tensor(*wanted, False, datatype="BOOL")
    for found in (
        infer(app.client, texts, as_tensor),
        infer(app.client, texts, parameters=wanted),
    ):
        assert found["text_output"] == ["abab", "cc"]


def test_only_wanted_outputs_are_given_in_their_order(app: App) -> None:
    names = ["num_output_tokens", "text_output"]
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in names]
    found = infer(app.client, text_input("abc"), outputs=wanted)
    assert found == {"num_output_tokens": [4], "text_output": ["abc"]}
    assert [*found] == names
    everything = infer(app.client, text_input("abc"), parameters={"binary_data_output": True})
    assert len(everything) == 4


FLAG = tensor("stream", True, datatype="BOOL")


@pytest.mark.parametrize(
    ("inputs", "more", "message"),
    [
        ([], {}, "inputs: "),
        ([text_input()], {}, "inputs[0].shape: text_input has 1 to 64"),
        ([text_input(*"a" * 65)], {}, "inputs[0].shape: text_input has 1 to 64"),
        ([text_input("a", shape=[2])], {}, "inputs[0].data: 1 elements, and not 2"),
        ([text_input("a", shape=[1, 2])], {}, "inputs[0].shape: [n] or [n, 1]"),
        ([text_input("a", shape=[])], {}, "inputs[0].shape: [n] or [n, 1]"),
        ([text_input(["a"])], {}, "inputs[0].data[0]: a string"),
        ([text_input("a", 3)], {}, "inputs[0].data[1]: a string"),
        ([text_input("a", "")], {}, "inputs[0].data[1]: the text is empty"),
        ([text_input("a", "\ud800")], {}, "lone surrogate"),
        ([text_input("a", datatype="FP32")], {}, "inputs[0].datatype: text_input is BYTES"),
        ([tensor("text", "a")], {}, "inputs[0].name: 'text' is no input"),
        ([text_input("a"), text_input("b")], {}, "inputs[1].name: text_input is there twice"),
        ([FLAG], {}, "inputs: text_input is missing"),
        ([text_input("a"), FLAG], {}, "stream: this route cannot be streamed"),
        ([text_input("a")], {"parameters": {"stream": True}}, "stream: this route"),
        ([text_input("a"), tensor("stream", 1, datatype="BOOL")], {}, "inputs[1].data[0]: a bool"),
        (
            [text_input("a"), tensor("stream", False, datatype="BOOL")],
            {"parameters": {"stream": False}},
            "inputs[1]: stream is a parameter, too",
        ),
        ([text_input("a"), tensor("sampling_parameters", "{")], {}, "inputs[1].data[0] is not val"),
        (
            [text_input("a"), tensor("sampling_parameters", '{"top": 1}')],
            {},
            "inputs[1].data[0]: unknown field top",
        ),
        (
            [text_input("a"), tensor("sampling_parameters", '{"top_p": "nan"}')],
            {},
            "inputs[1].data[0]: top_p: ",
        ),
        (
            [text_input("a"), tensor("sampling_parameters", "\ud800")],
            {},
            "inputs[1].data[0] is not valid JSON",
        ),
        (
            [text_input("a"), tensor("sampling_parameters", "{}")],
            {"parameters": {"top_k": 1}},
            "inputs[1]: sampling_parameters do not go with parameters",
        ),
        (
            [{**text_input("a"), "parameters": {"binary_data_size": 5}}],
            {},
            "unknown field inputs[0].parameters.binary_data_size",
        ),
        ([text_input("a")], {"outputs": [{"name": "logits"}]}, "outputs[0].name: 'logits'"),
        ([text_input("a")], {"outputs": [{"name": "text_output"}] * 2}, "outputs[1].name: text_ou"),
        (
            [text_input("a")],
            {"outputs": [{"name": "text_output", "parameters": {"classification": 1}}]},
            "outputs[0].parameters.classification",
        ),
        ([text_input("a")], {"parameters": {"priority": 1}}, "unknown field parameters.priority"),
        ([text_input("a")], {"parameters": {"top_p": 2}}, "parameters.top_p: "),
        ([text_input("a")], {"parameters": {"max_tokens": 257}}, "max_tokens: this server's limit"),
        ([text_input("a")], {"parameters": {"max_tokens": 2, "sampling_steps": 2}}, "max_tokens: "),
        ([text_input("a", "b" * 300)], {}, "the prompt of 301 tokens"),
    ],
)
def test_what_is_wrong_with_an_inference_is_named(
    app: App, inputs: Any, more: Any, message: str
) -> None:
    before = app.engine.stats().steps
    assert message in refusal(post(app.client, INFER, inputs=inputs, **more))
    stats = app.engine.stats()
    assert (stats.active, stats.queued, stats.steps) == (0, 0, before)


def test_binary_tensors_are_refused_by_name(app: App) -> None:
    headers = {"Inference-Header-Content-Length": "2"}
    response = app.client.post(INFER, data=b"{}\x05\x00\x00\x00hello", headers=headers)
    assert "Inference-Header-Content-Length" in refusal(response, 415)


@pytest.mark.parametrize(
    "options",
    [{}, {"stop": ["llo", "lo"]}, {"parameters": {"max_tokens": 2}}, {"temperature": 2, "seed": 5}],
)
def test_a_stream_joined_is_the_whole_answer(app: App, options: Any) -> None:
    body = {"text_input": "hello €", "id": "x", **options}
    whole = answer(app.client, GENERATE, **body)
    *parts, last = events(post(app.client, STREAM, **body, stream=True))
    head = {"id": "x", "model_name": "fake", "model_version": "1"}
    assert parts
    for part in parts:
        assert part == {**head, "text_output": part["text_output"], "done": False}
    joined = "".join(part["text_output"] for part in parts)
    assert {**last, "text_output": joined} == {**whole, "done": True}
    assert last["text_output"] == ""
    [at_once] = events(post(app.client, STREAM, **body, stream=False))
    assert at_once == {**whole, "done": True}
    without = {"exclude_input_in_output": False, "stream": False}
    [with_input] = events(post(app.client, STREAM, **body, **without))
    assert with_input["text_output"] == "hello €" + joined


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the field text_input is missing"),
        ({"text_input": ""}, "text_input: "),
        ({"text_input": "a", "parameters": {"n": 1}}, "unknown field parameters.n"),
        ({"text_input": "a", "n": 2}, "unknown field n"),
        ({"text_input": "a", "seed": 1, "parameters": {"seed": 1}}, "parameters.seed: seed is bes"),
        ({"text_input": "a", "parameters": {"temperature": "0"}}, "parameters.temperature: "),
        ({"text_input": "a" * 300}, "the prompt of 301 tokens"),
    ],
)
def test_what_is_wrong_with_a_generation_is_named(app: App, body: Any, message: str) -> None:
    for path in (GENERATE, STREAM):
        assert message in refusal(post(app.client, path, **body))


def test_each_route_refuses_the_other_s_stream(app: App) -> None:
    body = {"text_input": "a", "parameters": {"stream": True}}
    assert "ask generate_stream" in refusal(post(app.client, GENERATE, **body))
    both = {"text_input": "a", "exclude_input_in_output": False}
    assert "false cannot be streamed" in refusal(post(app.client, STREAM, **both))


def test_an_engine_that_dies_ends_the_stream_with_an_error(serve: Serve) -> None:
    app = serve(fail_at=4)
    response, chunks = post(app.client, STREAM, text_input="hello"), list[bytes]()
    with pytest.raises(BrokenPipeError):
        chunks.extend(response.response)  # type: ignore[arg-type]
    *parts, failure = b"".join(chunks).decode().removesuffix("\n\n").split("\n\n")
    assert (len(parts), response.status_code) == (3, 200)
    document = parse_json(failure.removeprefix("data: "))
    assert [*document] == ["error"]
    assert isinstance(document["error"], str)
    wait_until(lambda: len(app.deaths) == 1)


def test_texts_are_embedded(embedding: FlaskClient) -> None:
    texts = ["a", "bcd"]
    found = answer(embedding, INFER, id="e", inputs=[text_input(*texts)])
    vectors = [fake_vector([2, *(6 + byte for byte in text.encode()), 1]) for text in texts]
    assert found == {
        "id": "e",
        "model_name": "fake",
        "model_version": "1",
        "outputs": [
            {
                "name": "embedding",
                "datatype": "FP32",
                "shape": [2, WIDTH],
                "data": [number for vector in vectors for number in vector],
            }
        ],
    }
    for parameters in ({"max_tokens": 3}, {"stream": False}):
        response = post(embedding, INFER, inputs=[text_input("a")], parameters=parameters)
        assert "takes no options" in refusal(response)
    wanted = [{"name": "text_output"}]
    response = post(embedding, INFER, inputs=[text_input("a")], outputs=wanted)
    assert "these are: embedding" in refusal(response)
    assert "it does not generate" in refusal(post(embedding, GENERATE, text_input="a"))


def test_the_index_has_every_version_in_triton_s_words(served: Served) -> None:
    ready = {"name": "m", "state": "READY", "reason": ""}
    broken = {"name": "m", "version": "2", "state": "UNAVAILABLE", "reason": "it is broken"}
    first, third = {**ready, "version": "1"}, {**ready, "version": "3"}
    for body in (b"", b"{}", b'{"ready": false}'):
        response = served.client.post("/v2/repository/index", data=body)
        assert response.json == [first, broken, third]
    assert post(served.client, "/v2/repository/index", ready=True).json == [first, third]
    assert "ready" in refusal(post(served.client, "/v2/repository/index", ready=1))


def test_the_index_follows_a_version_to_its_end(serve: Serve) -> None:
    app = serve()
    [first] = app.models.registry.versions()
    second = ServableVersion("fake", 2)
    app.models.registry.add(second)

    def states() -> list[Any]:
        found = parse_json(app.client.post("/v2/repository/index").data)
        return [each["state"] for each in found if each["name"] == "fake"]

    assert states() == ["READY", "UNAVAILABLE"]
    app.models.registry.to_loading(second)
    assert states() == ["READY", "LOADING"]
    app.models.registry.to_unloading(first)
    assert states() == ["UNLOADING", "LOADING"]
    app.models.registry.to_end(first)
    assert states() == ["UNAVAILABLE", "LOADING"]
