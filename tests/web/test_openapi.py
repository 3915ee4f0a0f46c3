"""/openapi.json describes the routes, and nothing that follows from it breaks the server."""

from collections import Counter
from typing import Any

import pytest

from gemma_server.build import load_model
from gemma_server.served import ServedModel
from gemma_server.settings import load_settings
from gemma_server.web.app import make_app
from gemma_server.web.openapi import document
from tests.web.conftest import Sidecar

MIN_CASES = 2000


def test_every_route_with_a_body_is_described_and_no_other(sidecar: Sidecar) -> None:
    rules = sidecar.client.application.url_map.iter_rules()
    with_body = {rule.rule for rule in rules if "POST" in (rule.methods or ())}
    found = sidecar.client.get("/openapi.json").json
    assert found == document()
    assert set(found["paths"]) == with_body


def test_the_page_names_every_field(sidecar: Sidecar) -> None:
    page = sidecar.client.get("/docs").get_data(as_text=True)
    for body in ("PromptBody", "CompletionBody", "GenerateBody"):
        for name in document()["components"]["schemas"][body]["properties"]:
            assert f"<code>{name}</code>" in page


@pytest.mark.slow
def test_no_request_that_fits_the_schemas_or_almost_does_breaks_the_server() -> None:
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode, checks
    from schemathesis.specs.openapi.checks import content_type_conformance

    model, own = ServedModel("fake"), load_settings(fake=True)
    load_model(own, model, lambda error: None)
    schema: Any = schemathesis.openapi.from_wsgi("/openapi.json", make_app(model, own))
    answers: Counter[tuple[str, bool]] = Counter()

    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=125, deadline=None, suppress_health_check=list(HealthCheck))
            def ask(case: Any) -> None:
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                    case.body["model"] = "fake"  # else next to all of them would be 404
                response = case.call()
                answers[case.path, response.status_code == 200] += 1
                case.validate_response(
                    response, checks=[checks.not_a_server_error, content_type_conformance]
                )

            ask()

    assert answers.total() >= MIN_CASES
    assert all(answers[path, True] for path in document()["paths"])  # none is only refused
