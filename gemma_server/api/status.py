"""For operators: is the server alive, is it ready, what is it doing."""

from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST
from typing_extensions import TypedDict

from gemma_server.api.caller import Caller
from gemma_server.api.operation import Answer, Operation
from gemma_server.serving.model import Readiness
from gemma_server.serving.models import Models


class Health(TypedDict):
    """GET /healthz."""

    status: Literal["ok"]


def health(body: None, models: Models, caller: Caller) -> Health:
    """The process answers."""
    return {"status": "ok"}


def ready(body: None, models: Models, caller: Caller) -> Answer:
    """The model's status; while it loads the answer is no error, but no success either."""
    readiness = models.readiness()
    if readiness["status"] == "ready":
        return Answer(readiness)
    return Answer(readiness, 503, {"Retry-After": "2"})


def metrics(body: None, models: Models, caller: Caller) -> Answer:
    """All figures in Prometheus' text format."""
    return Answer(models.metrics.exposition(), content_type=CONTENT_TYPE_LATEST)


OPERATIONS = (
    Operation(
        "health",
        "Whether the process answers",
        health,
        method="GET",
        path="/healthz",
        answer=Health,
    ),
    Operation(
        "ready",
        "Whether it can generate",
        ready,
        method="GET",
        path="/readyz",
        frame="ready",
        answer=Readiness,
        unready=Readiness,
    ),
    Operation(
        "ready_as_health",
        "Whether it can generate, by vLLM's and llama.cpp's name",
        ready,
        method="GET",
        path="/health",
        answer=Readiness,
        unready=Readiness,
    ),
    Operation(
        "metrics",
        "Figures for Prometheus",
        metrics,
        method="GET",
        path="/metrics",
        text=("text/plain",),
    ),
)
