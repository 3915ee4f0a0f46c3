"""What the server and its models are, and whether they are ready.

The wire format follows kserve/open-inference-protocol's `specification/protocol/inference_rest.md`;
the bodies of the health routes, which it leaves open, and the list of models kserve/kserve's
`python/kserve/kserve/protocol/rest/v2_datamodels.py`.
"""

from collections.abc import Callable
from typing import Any

from typing_extensions import TypedDict

from gemma_server import __version__
from gemma_server.api.caller import Caller
from gemma_server.api.errors import MESSAGE_ALONE
from gemma_server.api.inference_protocol.infer import INPUTS, outputs_of
from gemma_server.api.inference_protocol.paths import for_each_version
from gemma_server.api.inference_protocol.repository import models_by_name
from gemma_server.api.inference_protocol.tensor import TensorMetadata
from gemma_server.api.operation import Operation
from gemma_server.errors import NotReady
from gemma_server.serving.models import Models
from gemma_server.serving.version import State


class ServerMetadata(TypedDict):
    """GET /v2."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(TypedDict):
    """GET /v2/health/live."""

    live: bool


class ServerReady(TypedDict):
    """GET /v2/health/ready."""

    ready: bool


class ModelNames(TypedDict):
    """GET /v2/models."""

    models: list[str]


class ModelMetadata(TypedDict):
    """GET /v2/models/NAME."""

    name: str
    versions: list[str]  # those that take requests
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(TypedDict):
    """GET /v2/models/NAME/ready."""

    name: str
    ready: bool


def server_metadata(body: None, models: Models, caller: Caller) -> ServerMetadata:
    """What the server is."""
    return {
        "name": "gemma-server",
        "version": __version__,
        "extensions": ["generate", "model_repository"],
    }


def live(body: None, models: Models, caller: Caller) -> ServerLive:
    """The process answers."""
    return {"live": True}


def ready(body: None, models: Models, caller: Caller) -> ServerReady:
    """Whether it is, by the same rule as /readyz.

    Raises:
        NotReady: it is not.
    """
    readiness = models.readiness()
    if readiness["status"] != "ready":
        message = f"the server is {readiness['status']} ({readiness['stage']})"
        raise NotReady(readiness["status"], message, retry_after_s=2)
    return {"ready": True}


def names(body: None, models: Models, caller: Caller) -> ModelNames:
    """All models, whatever their state."""
    return {"models": list(models_by_name(models))}


def model_metadata(body: None, models: Models, caller: Caller) -> ModelMetadata:
    """What the model takes and gives."""
    loaded = caller.hold(models.resolve_any, caller.asked, waits=False)
    versions = models.states(loaded.name)
    able = sorted(each.number for each in versions if each.state is State.AVAILABLE)
    return {
        "name": loaded.name,
        "versions": list(map(str, able)),
        "platform": "jax",
        "inputs": INPUTS,
        "outputs": outputs_of(loaded),
    }


def model_ready(body: None, models: Models, caller: Caller) -> ModelReady:
    """Whether it takes requests; so does one that is loaded when it is asked for.

    Raises:
        NotReady, ModelNotFound: it does not.
    """
    model, loaded = models.look_at(caller.asked)
    if loaded is None and not model.can_come():
        caller.hold(models.resolve_any, caller.asked, waits=False)  # which says why
    return {"name": model.public_name, "ready": True}


def _get(
    name: str, summary: str, handle: Callable[[None, Models, Caller], Any], path: str, answer: Any
) -> Operation[Any]:
    return Operation(
        name, summary, handle, method="GET", path=path, answer=answer, error_form=MESSAGE_ALONE
    )


OPERATIONS: tuple[Operation[Any], ...] = (
    _get("v2", "What the server is", server_metadata, "/v2", ServerMetadata),
    _get("live", "Whether the process answers", live, "/v2/health/live", ServerLive),
    _get("v2_ready", "Whether requests are taken", ready, "/v2/health/ready", ServerReady),
    _get("v2_models", "The names of all models", names, "/v2/models", ModelNames),
    *for_each_version(
        lambda suffix, path: _get(
            f"v2_model{suffix}", "What `infer` takes and gives", model_metadata, path, ModelMetadata
        )
    ),
    *for_each_version(
        lambda suffix, path: _get(
            f"v2_model_ready{suffix}",
            "Whether it takes requests",
            model_ready,
            f"{path}/ready",
            ModelReady,
        )
    ),
)
