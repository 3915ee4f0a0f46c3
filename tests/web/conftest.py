"""The web app on the fake engine, in this process, and how its answers must look."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gemma_server.engine.engine import Engine
from gemma_server.engine.fake import FakeStep, fake_tokenizer
from gemma_server.engine.plan import Plan
from gemma_server.engine.request import Request, SamplingParams
from gemma_server.engine.scheduler import Scheduler
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.serving.engines import limits_of
from gemma_server.serving.loader import load_model
from gemma_server.serving.model import GenerativeModel, LoadedModel
from gemma_server.serving.models import Models
from gemma_server.serving.rate_limit import RateLimit
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import Settings, variable_name
from gemma_server.text.chat_template import ChatTemplate, GemmaTemplate
from gemma_server.text.gemma4_template import Gemma4Template
from gemma_server.text.prompted_tools import with_tools
from gemma_server.web.app import make_app
from gemma_server.weights.sampling_defaults import SamplingDefaults
from testing.answers import parse_metrics
from testing.chats import SayingRunner, gemma4_tokenizer
from testing.waiting import wait_until


class WatchedRunner(SayingRunner):
    """A fake runner that remembers how it was asked to sample, and that tests can hold back."""

    def __init__(self, slots: int, *, step_s: float = 0.0, fail_at: int | None = None) -> None:
        super().__init__(slots, step_s=step_s, fail_at=fail_at)
        self.open = threading.Event()
        self.open.set()
        self.samplings: list[SamplingParams] = []
        self.prompts: list[tuple[int, ...]] = []  # whole ones

    def dispatch(self, plan: Plan) -> FakeStep:
        """Wait until tests let steps through, then run the step."""
        self.open.wait()
        step, chunk = super().dispatch(plan), plan.prefill
        if chunk is not None and chunk.sampling is not None:
            self.samplings.append(chunk.sampling)
            self.prompts.append(tuple(self._cached[chunk.slot]))
        return step


@dataclass
class App:
    """An app, everything behind it, and one way to ask it."""

    client: FlaskClient
    models: Models
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
            wait_until(lambda: self.engine.stats().active == 1)

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by series."""
        return parse_metrics(self.client.get("/metrics").get_data(as_text=True))


Serve = Callable[..., App]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Makes apps whose models are ready, unless told `loading`; ends their engines."""
    made: list[App] = []

    def make(
        *,
        slots: int = 2,
        context_length: int = 256,
        max_queue: int = 64,
        step_s: float = 0.0,
        chunk: int = 32,
        fail_at: int | None = None,
        loading: bool = False,
        gemma4: bool = False,
        sampling: SamplingDefaults = SamplingDefaults(),  # noqa: B008  # it never changes
        **settings: Any,
    ) -> App:
        runner = WatchedRunner(slots, step_s=step_s, fail_at=fail_at)
        own = Settings(
            **settings,
            slots=slots,
            context_length=context_length,
            max_queue=max_queue,
            max_queue_tokens=10_000,
            max_draft=0,
            fake=True,
        )
        limits = limits_of(own, context_length, (chunk,))
        deaths: list[BaseException] = []
        engine = Engine(runner, Scheduler(limits), deaths.append)
        engine.start()
        models = Models("fake")
        if loading:
            models.registry.add(ServableVersion("fake"))
        else:
            tokenizer, limit = fake_tokenizer(), own.max_steps
            chat: ChatTemplate = GemmaTemplate(tokenizer)
            if gemma4:
                tokenizer = gemma4_tokenizer()
                chat = Gemma4Template(tokenizer, opens_thought=False)
            most = own.requests_per_minute, own.tokens_per_minute
            rate_limit = RateLimit("model", *most, clock=lambda: 0.0)  # it does not refill
            fixed = ("fake", tokenizer, "none", 0.0, CompileCounter())
            models.registry.adopt(
                GenerativeModel(
                    *fixed,
                    with_tools(chat),
                    engine,
                    sampling=sampling,
                    max_steps=limit,
                    rate_limit=rate_limit,
                )
            )
        client = make_app(models, own).test_client()
        made.append(App(client, models, engine, runner, deaths))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        for setting in Settings.model_fields:
            patch.delenv(variable_name(setting), raising=False)
        yield make
    for app in made:
        app.runner.open.set()
        app.engine.stop()


@pytest.fixture(scope="module")
def app(serve: Serve) -> App:
    """The app for tests that leave nothing behind."""
    return serve()


class Served:
    """Version 1 and 3 of model m; 2 has failed."""

    def __init__(self) -> None:
        self.settings = Settings(fake=True, slots=4, model_name="m")
        self.models = Models("m")
        self.loaded = [self._add(1), self._add(3)]
        failed = ServableVersion("m", 2)
        self.models.registry.add(failed)
        self.models.registry.to_end(failed, "it is broken")
        self.models.registry.set_labels("m", {"stable": 1, "canary": 3, "broken": 2})
        self.client: FlaskClient = make_app(self.models, self.settings).test_client()

    def _add(self, number: int) -> LoadedModel:
        version = ServableVersion("m", number)
        loaded = replace(load_model(self.settings, version, lambda error: None), version=number)
        self.models.registry.add(version)
        self.models.registry.to_available(version, loaded)
        return loaded


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served()
    yield made
    for loaded in made.loaded:
        loaded.worker.stop()
