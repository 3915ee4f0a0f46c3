"""The web app on the fake engine, in this process, and how its answers must look."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gemma_server.engine.engine import Engine
from gemma_server.engine.fake import FakeRunner, FakeStep, fake_tokenizer
from gemma_server.engine.plan import Plan
from gemma_server.engine.request import Request, SamplingOptions
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.executor.compile_counter import Compilations
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import LoadedModel, ServedModel
from gemma_server.settings import Settings, variable_name
from gemma_server.web.app import make_app

ERROR_TYPES = {
    "authentication_error",
    "invalid_request_error",
    "not_found_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
    "timeout_error",
    "unavailable_error",
}
STAGES = {f"{stage}_ms" for stage in ("parse", "tokenize", "queue", "prefill", "decode", "compile")}
ERROR_FIELDS = {"type", "message", "param", "code", "request_id"}


class WatchedRunner(FakeRunner):
    """A fake runner that remembers how it was asked to sample, and that tests can hold back."""

    def __init__(self, slots: int, *, step_s: float = 0.0, fail_at: int | None = None) -> None:
        super().__init__(slots, step_s=step_s, fail_at=fail_at)
        self.open = threading.Event()
        self.open.set()
        self.samplings: list[SamplingOptions] = []

    def dispatch(self, plan: Plan) -> FakeStep:
        """Wait until tests let steps through, then run the step."""
        self.open.wait()
        if plan.prefill is not None and plan.prefill.sampling is not None:
            self.samplings.append(plan.prefill.sampling)
        return super().dispatch(plan)


@dataclass
class Sidecar:
    """An app, everything behind it, and one way to ask it."""

    client: FlaskClient
    model: ServedModel
    counters: Metrics
    engine: Engine
    runner: WatchedRunner
    deaths: list[BaseException] = field(default_factory=list)

    def prompt(
        self, prompt: Any, *, headers: dict[str, str] | None = None, **fields: Any
    ) -> TestResponse:
        """POST /prompt."""
        return self.post(json.dumps({"prompt": prompt, **fields}).encode(), headers=headers)

    def post(
        self, body: bytes, path: str = "/prompt", *, headers: dict[str, str] | None = None
    ) -> TestResponse:
        """POST these very bytes as JSON."""
        return self.client.post(path, data=body, headers=headers, content_type="application/json")

    def occupy(self, requests: int) -> None:
        """Hold the runner back while one request is in its slot and the others wait."""
        self.runner.open.clear()
        for _ in range(requests):
            self.engine.submit([Request((2, 3), 1)])
            wait_until(lambda: self.engine.active == 1)

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by series."""
        return parse_metrics(self.client.get("/metrics").get_data(as_text=True))


Serve = Callable[..., Sidecar]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Makes sidecars whose models are ready, unless told `loading`; ends their engines."""
    made: list[Sidecar] = []

    def make(
        *,
        slots: int = 2,
        context_length: int = 256,
        max_queue: int = 64,
        step_s: float = 0.0,
        fail_at: int | None = None,
        loading: bool = False,
        **settings: Any,
    ) -> Sidecar:
        runner = WatchedRunner(slots, step_s=step_s, fail_at=fail_at)
        limits = Limits(slots, context_length, 32, max_queue, max_queue_tokens=10_000)
        deaths: list[BaseException] = []
        engine = Engine(runner, Scheduler(limits), deaths.append)
        engine.start()
        model = ServedModel("fake")
        if not loading:
            model.ready(LoadedModel("fake", fake_tokenizer(), engine, "none", 0.0, Compilations()))
        own = Settings(context_length=context_length, fake=True, **settings)
        counters = Metrics(model)
        client = make_app(model, own, counters).test_client()
        made.append(Sidecar(client, model, counters, engine, runner, deaths))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        for setting in Settings.model_fields:
            patch.delenv(variable_name(setting), raising=False)
        yield make
    for sidecar in made:
        sidecar.runner.open.set()
        sidecar.engine.stop()


@pytest.fixture(scope="module")
def sidecar(serve: Serve) -> Sidecar:
    """The sidecar for tests that leave nothing behind."""
    return serve()


def wait_until(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Look until `holds` does."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)


def parse_json(text: str | bytes) -> Any:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def parse_metrics(exposition: str) -> dict[str, float]:
    """Prometheus' text form, by series."""
    lines = [line for line in exposition.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, value in (line.rsplit(" ", 1) for line in lines)}


def error_inside(document: Any, request_id: str | None) -> dict[str, Any]:
    """What is in `document`, which has the one form of an error, whatever the error."""
    assert list(document) == ["error"]
    error: dict[str, Any] = document["error"]
    numbers = {"prompt_tokens", "limit"} if error["code"] == "context_length_exceeded" else set()
    assert set(error) == ERROR_FIELDS | numbers
    assert error["type"] in ERROR_TYPES
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["code"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["request_id"] == request_id
    return error


def assert_error_form(response: TestResponse) -> dict[str, Any]:
    """The answer is an error in the one form; returns the inside."""
    assert response.mimetype == "application/json"
    return error_inside(parse_json(response.data), response.headers["X-Request-Id"])


def assert_error(
    response: TestResponse, status: int, code: str, param: str | None = None
) -> dict[str, Any]:
    """The answer is this error, in the one form; returns the inside."""
    error = assert_error_form(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    return error


def sse_events(body: bytes) -> list[Any]:
    """The documents of a whole stream, without the `[DONE]` that must end it."""
    *events, done, rest = body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [parse_json(event.removeprefix("data: ")) for event in events]
