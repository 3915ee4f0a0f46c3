"""/openapi.json describes the routes, and nothing that follows from it breaks the server."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gemma_server.serving.loader import load_model
from gemma_server.serving.models import Models
from gemma_server.serving.residency import Residency
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import load_settings
from gemma_server.web import openapi
from gemma_server.web.app import make_app
from gemma_server.web.page import ROUTES
from testing.answers import parse_json
from testing.counts import cases
from tests.web.conftest import App
from tests.web.dialects import ROUTES as GENERATING

DESCRIBED = openapi.document(ROUTES)
CASES = cases(25, 125)  # for each way in which an operation is asked
# Why a body may be refused that its schema allows: what depends on the model, on the settings, on
# another field, or is not served yet.
BEYOND_A_SCHEMA = re.compile(
    r"is not supported|are not supported|is no token|this server's (limit is|context has)"
    r"|more than the context|cannot be streamed|either prompt or messages|the last message is not"
    r"|false goes with continue_final_message|a raw prompt is all|model .* not found"
    r"|they go with a stream alone|tokens are generated|the last message goes on"
    r"|it makes no embeddings|invalid_grammar|no JSON|is missing"
    r"|has one form|does not go with|no such tool|answers the call|nobody else|nested too deeply"
    r"|must be a JSON object|must be an object|thinking is not|calls tools in JSON too"
    r"|: says nothing"
    r"|instances or inputs|signature_name: |columns of one length|(instances|inputs|outputs)\[\d+\]"
    r"|inputs: text_input is missing|ask generate_stream|is beside parameters, too"
    r"|\"error\":\"(format|grammar|regex|response_schema|choice)(:|\[|\.)"
    r"|false cannot be streamed|max_tokens: it does not go with sampling_steps"
)
SERVED = {"name": "fake", "version": "1", "label": "stable"}  # parts of a path that are found
# The routes whose body is for the model that their path names.
OF_A_MODEL = [each.path for each in ROUTES if each.body and each.path and "{name}" in each.path]
PREDICT = [path for path in OF_A_MODEL if path.endswith(":predict")]
TEXT_INPUT = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["x"]}
LEAST: dict[str, dict[str, Any]] = {
    **GENERATING,
    "/echo": {"prompt": 1},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [7]},
    "/api/show": {"model": "fake"},
    **{path: {"text_input": "x"} for path in OF_A_MODEL if "/generate" in path},
    **{path: {"inputs": [TEXT_INPUT]} for path in OF_A_MODEL if path.endswith("/infer")},
    **{path: {"instances": ["x"]} for path in PREDICT},
}
_REF = "#/components/schemas/"


def test_every_route_is_described_and_no_other(app: App) -> None:
    routes = {
        (re.sub(r"<path:(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    found = app.client.get("/openapi.json").json
    assert found == DESCRIBED
    assert {(path, method) for path, item in found["paths"].items() for method in item} == routes


def test_the_page_names_every_field_of_bodies_and_answers(app: App) -> None:
    page = app.client.get("/docs").get_data(as_text=True)
    for schema in ("PromptBody", "CompletionBody", "GenerateBody", "PromptAnswer", "Tags"):
        for name in DESCRIBED["components"]["schemas"][schema]["properties"]:
            assert f"<code>{name}</code>" in page


@pytest.mark.slow
def test_no_request_that_fits_the_schemas_or_almost_does_breaks_the_server_or_its_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode, checks
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_schema_conformance,
        status_code_conformance,
    )

    closed = _with_closed_answers(DESCRIBED)
    monkeypatch.setattr(openapi, "document", lambda operations: closed)
    monkeypatch.setattr("gemma_server.web.routes.came_by_unix_socket", lambda: True)  # an operator
    models, own = Models("fake"), load_settings(fake=True)
    models.registry.adopt(load_model(own, ServableVersion("fake"), lambda error: None))
    models.registry.set_labels("fake", {"stable": 1})
    models.registry.govern("fake", Residency(), {})  # it may be unloaded; here nobody does it
    schema: Any = schemathesis.openapi.from_wsgi("/openapi.json", make_app(models, own))
    schema.config.checks.negative_data_rejection.expected_statuses += ["413"]  # some draws are huge
    is_a_part = {path: _part_validator(closed, path) for path in closed["paths"]}
    answers: Counter[tuple[str, bool]] = Counter()
    streaming = {each.path for each in ROUTES if each.stream}
    streamed: Counter[str] = Counter()
    unforeseen: set[str] = set()

    def check(case: Any) -> None:
        model = case.body.get("model") if isinstance(case.body, dict) else None
        if isinstance(model, str) and model:
            case.body["model"] = "fake"  # else next to all of them would be 404
        fits = case.meta is None or case.meta.generation.mode == GenerationMode.POSITIVE
        if fits and case.path in OF_A_MODEL:
            case.path_parameters = {name: SERVED[name] for name in _names_in(case.path)}
        response = case.call()
        answers[case.path, response.status_code == 200] += 1
        case.validate_response(
            response,
            checks=[
                checks.not_a_server_error,
                content_type_conformance,
                negative_data_rejection,
                response_schema_conformance,
                status_code_conformance,
            ],
        )
        refused = fits and isinstance(case.body, dict) and response.status_code != 200
        if refused and not BEYOND_A_SCHEMA.search(response.text):
            unforeseen.add(response.text)
        for part in _parts(response):
            assert is_a_part[case.path](part), part
            streamed[case.path] += 1

    for result in schema.get_all_operations():
        operation = result.ok()
        strategies = [operation.as_strategy(generation_mode=GenerationMode.POSITIVE)]
        if operation.body:
            strategies.append(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        if operation.path in streaming:  # few cases ask for it by themselves
            strategies.append(strategies[0].map(_streamed))
        for strategy in strategies:

            @given(case=strategy)
            @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
            def ask(case: Any) -> None:
                check(case)

            ask()
        if operation.path in LEAST:  # so that no luck is needed for an answer
            for more in ({}, {"stream": True}) if operation.path in streaming else ({},):
                check(operation.Case(body={**LEAST[operation.path], **more}))

    assert not unforeseen
    assert answers.total() >= 16 * CASES
    # None of them is only refused, or never streams though it can.
    unanswered = {path for path in closed["paths"] if not answers[path, True]}
    of_other_models = {"/v1/embeddings", "/api/embed", "/api/embeddings"}
    of_others = {path for path in closed["paths"] if _names_in(path)} - set(OF_A_MODEL)
    assert unanswered == {"/openapi.json", *of_other_models, *of_others}  # asked once
    assert set(streamed) == streaming


def _names_in(path: str) -> list[str]:
    return re.findall(r"{(\w+)}", path)


def _streamed(case: Any) -> Any:
    case.body["stream"] = True
    return case


def _with_closed_answers(described: dict[str, Any]) -> dict[str, Any]:
    """The same document, by which an answer has no field that is not described."""
    schemas = described["components"]["schemas"]
    responses = [
        operation["responses"]
        for path in described["paths"].values()
        for operation in path.values()
    ]
    answers, found = set[str](), set(_references(responses))
    while found:
        answers |= found
        found = set(_references([schemas[name] for name in found])) - answers
    closed = {
        name: {**schema, "additionalProperties": False} if name in answers else schema
        for name, schema in schemas.items()
    }
    return {**described, "components": {"schemas": closed}}


def _references(node: Any) -> Iterator[str]:
    """The names of all schemas that this mentions."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].removeprefix(_REF)
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _part_validator(described: dict[str, Any], path: str) -> Callable[[Any], bool]:
    """Whether something may be a part of the stream that a route answers."""
    from jsonschema_rs import Draft202012Validator

    [operation] = described["paths"][path].values()
    contents = operation["responses"]["200"]["content"].values()
    schemas = [content["x-itemSchema"] for content in contents if "x-itemSchema" in content]
    whole = {"anyOf": schemas, "components": described["components"]}
    return Draft202012Validator(whole if schemas else False).is_valid


def _parts(response: Any) -> list[Any]:
    """The JSON of every part of a streamed answer."""
    text = response.content.decode()
    match response.headers["content-type"][0].partition(";")[0]:
        case "text/event-stream":
            events = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
            return [parse_json(event) for event in events if event != "[DONE]"]
        case "application/x-ndjson":
            return [parse_json(line) for line in text.splitlines()]
    return []
