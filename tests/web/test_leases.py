"""Every request gives its model back, however it ends."""

from typing import Any

import pytest

from testing.waiting import wait_until
from tests.web.conftest import App, Serve
from tests.web.dialects import ask, each_route


@each_route
def test_a_whole_answer_a_stream_and_a_refusal_give_the_lease_back(app: App, path: str) -> None:
    asked: tuple[tuple[int, dict[str, Any]], ...] = (
        (200, {"stream": False}),
        (200, {"stream": True}),
        (400, {"stream": "maybe"}),
        (404, {"model": "other"}),
    )
    for status, fields in asked:
        with ask(app, path, **fields) as answer:  # a server always closes
            assert answer.status_code == status
            assert answer.get_data()
    assert app.models.leases == 0


@each_route
def test_a_stream_holds_its_model_until_the_client_leaves(serve: Serve, path: str) -> None:
    app = serve(slots=1)
    response = ask(app, path, stream=True)
    assert app.models.leases == 1
    response.close()
    wait_until(lambda: app.models.leases == 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [999_999]}),
        ("/api/show", {"model": "fake"}),
        ("/echo?through=queue", {"prompt": "x"}),
        ("/prompt", {"prompt": "x" * 5000}),
    ],
)
def test_what_does_not_generate_gives_it_back_too(
    app: App, path: str, body: dict[str, Any]
) -> None:
    app.client.post(path, json=body)
    app.client.get("/v1/models/fake")
    assert app.models.leases == 0


def test_a_failed_generation_gives_it_back(serve: Serve) -> None:
    app = serve(fail_at=2)
    assert app.prompt("hello").status_code == 500
    assert app.models.leases == 0
