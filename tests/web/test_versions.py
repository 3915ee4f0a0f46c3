"""Versions of a model by every name, and TensorFlow Serving's routes, on two fakes side by side."""

from typing import Any

import pytest

from gemma_server.errors import ModelNotFound
from gemma_server.serving.models import Models
from gemma_server.serving.version import ServableVersion
from testing.answers import assert_error, parse_json
from tests.web.conftest import Served


def ask(served: Served, path: str, **fields: Any) -> Any:
    response = served.client.post(path, json=fields)
    assert response.status_code == 200, response.text
    return response


NAMES = {None: 3, "m": 3, "m:latest": 3, "m@1": 1, "m@3": 3, "m:stable": 1, "m:canary": 3}


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_says_which_version_it_is_of(served: Served, name: str | None) -> None:
    number = str(NAMES[name])
    answer = ask(served, "/prompt", prompt="ab", sampling_steps=3, model=name)
    assert answer.json["model_version"] == answer.headers["X-Model-Version"] == number
    stream = ask(served, "/prompt", prompt="ab", sampling_steps=3, model=name, stream=True)
    assert stream.headers["X-Model-Version"] == number
    assert f'"model_version":"{number}"' in stream.text
    messages = [{"role": "user", "content": "a"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "a", "max_tokens": 2},
        "/v1/chat/completions": {"messages": messages, "max_tokens": 2},
        "/api/chat": {"messages": messages, "options": {"num_predict": 2}},
        "/tokenize": {"prompt": "a"},
    }
    for path, body in bodies.items():
        if name is not None or path != "/api/chat":
            assert ask(served, path, model=name, **body).headers["X-Model-Version"] == number


@pytest.mark.parametrize("name", ["m@2", "m:broken", "m@9", "m:no", "n", "m@", "@1", "m@stable"])
def test_other_versions_are_refused_by_name(served: Served, name: str) -> None:
    response = served.client.post("/prompt", json={"prompt": "a", "model": name})
    if name == "m@2":
        error = assert_error(response, 503, "unavailable")
        assert "it is broken" in error["message"]
    else:
        assert name in assert_error(response, 404, "model_not_found", "model")["message"]


def test_the_model_s_status_has_all_versions_beside_openai_s_fields(served: Served) -> None:
    answer = parse_json(served.client.get("/v1/models/m").data)
    assert (answer["id"], answer["object"]) == ("m", "model")
    good = {"error_code": "OK", "error_message": ""}
    bad = {"error_code": "INTERNAL", "error_message": "it is broken"}
    assert answer["model_version_status"] == [
        {"version": "3", "state": "AVAILABLE", "status": good},
        {"version": "2", "state": "END", "status": bad},
        {"version": "1", "state": "AVAILABLE", "status": good},
    ]
    for path, number in {"versions/2": 1, "versions/1": 2, "labels/stable": 2}.items():
        one = parse_json(served.client.get(f"/v1/models/m/{path}").data)
        assert one == {"model_version_status": [answer["model_version_status"][number]]}


def test_metadata_name_the_version(served: Served) -> None:
    for path, number in {"": "3", "/versions/1": "1", "/labels/stable": "1"}.items():
        answer = parse_json(served.client.get(f"/v1/models/m{path}/metadata").data)
        assert answer["model_spec"] == {"name": "m", "signature_name": "", "version": number}
        signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["inputs"]["prompt"]["dtype"] == "DT_STRING"


@pytest.mark.parametrize("path", ["", "/versions/1", "/labels/stable"])
def test_rows_are_answered_by_rows_and_columns_by_columns(served: Served, path: str) -> None:
    path, instances = f"/v1/models/m{path}:predict", ["abc", {"prompt": "xy", "sampling_steps": 2}]
    single = [
        ask(served, "/prompt", prompt="abc").json,
        ask(served, "/prompt", prompt="xy", sampling_steps=2).json,
    ]
    rows = [{name: each[name] for name in ("response", "finish_reason")} for each in single]
    answer = ask(served, path, instances=instances)
    assert answer.json == {"predictions": rows}
    assert answer.headers["X-Model-Version"] == ("1" if "/" in path[11:] else "3")
    columns = {name: [row[name] for row in rows] for name in ("response", "finish_reason")}
    assert ask(served, path, inputs=instances).json == {"outputs": columns}
    given = {"prompt": ["abc", "xy"], "sampling_steps": [2, 2]}
    cut = ask(served, path, signature_name="serving_default", inputs=given).json["outputs"]
    assert [len(text) for text in cut["response"]] == [2, 2]
    assert len(ask(served, path, inputs="abc").json["outputs"]["response"]) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "instances or inputs"),
        ({"instances": ["a"], "inputs": ["a"]}, "instances or inputs"),
        ({"instances": []}, "instances"),
        ({"instances": [3]}, "instances[0]"),
        ({"instances": ["a", {"prompt": "a", "temprature": 1}]}, "instances[1]"),
        ({"instances": ["a", {"prompt": "a", "model": "m"}]}, "instances[1].model"),
        ({"instances": [{"sampling_steps": 1}]}, "instances[0]"),
        ({"inputs": {"prompt": ["a", "b"], "seed": [1]}}, "prompt 2, seed 1"),
        ({"inputs": {}}, "none"),
        ({"inputs": {"seed": [1]}}, "inputs[0]"),
        ({"instances": ["a"], "signature_name": "other"}, "'other' is not 'serving_default'"),
    ],
)
def test_bad_predictions_are_refused_in_tensorflow_s_form(
    served: Served, fields: Any, message: str
) -> None:
    response = served.client.post("/v1/models/m:predict", json=fields)
    assert response.status_code == 400
    document = parse_json(response.data)
    assert [*document] == ["error"]
    assert message in document["error"]


def test_nothing_is_queued_if_one_instance_is_refused(served: Served) -> None:
    long = {"prompt": "a" * 9000}
    before = served.loaded[1].worker.stats().tokens_sampled
    response = served.client.post("/v1/models/m:predict", json={"instances": ["a", long]})
    assert response.status_code == 400
    stats = served.loaded[1].worker.stats()
    assert (stats.active, stats.queued) == (0, 0)
    assert stats.tokens_sampled - before < 128


def test_unknown_models_and_versions_are_not_found(served: Served) -> None:
    for path in (
        "n/versions/1",
        "m/versions/9",
        "m/labels/no",
        "n/metadata",
        "m/versions/9/metadata",
    ):
        response = served.client.get(f"/v1/models/{path}")
        document = parse_json(response.data)
        assert (response.status_code, [*document]) == (404, ["error"])
        assert isinstance(document["error"], str)
    odd = ("a%0Ab/versions/1", "m/versions/%0A", "m/labels/%2F", "%2F/metadata", "m%0A/metadata")
    for path in odd:
        response = served.client.get(f"/v1/models/{path}")
        document = parse_json(response.data)
        assert (response.status_code, type(document["error"])) == (404, str)
    broken = parse_json(served.client.post("/v1/models/a%0A:predict", json={}).data)
    assert isinstance(broken["error"], str)
    assert served.client.post("/v1/models/n:predict", json={"inputs": "a"}).status_code == 404


def test_a_label_stays_until_its_new_version_takes_requests(served: Served) -> None:
    models = Models("m")
    for number in (1, 2):
        models.registry.add(ServableVersion("m", number))
    [first, second] = models.registry.versions("m")
    models.registry.to_available(first, served.loaded[0])
    models.registry.set_labels("m", {"stable": 1, "next": 2})
    assert models.labelled("m", "stable").number == 1
    with pytest.raises(ModelNotFound):
        models.labelled("m", "next")
    models.registry.set_labels("m", {"stable": 2})
    assert models.labelled("m", "stable").number == 1
    models.registry.to_available(second, served.loaded[1])
    models.registry.set_labels("m", {"stable": 2})
    assert models.labelled("m", "stable").number == 2
