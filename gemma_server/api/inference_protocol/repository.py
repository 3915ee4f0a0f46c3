"""Triton's model repository extension: the index of all versions, and what is in memory.

The wire format follows triton-inference-server/server's
`docs/protocol/extension_model_repository.md`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from gemma_server.api.caller import Caller
from gemma_server.api.errors import MESSAGE_ALONE
from gemma_server.api.operation import Answer, Operation
from gemma_server.serving.models import Models
from gemma_server.serving.version import ServableVersion, State

TritonState = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
_STATES: dict[State, TritonState] = {
    State.START: "UNAVAILABLE",
    State.LOADING: "LOADING",
    State.AVAILABLE: "READY",
    State.UNLOADING: "UNLOADING",
    State.END: "UNAVAILABLE",
}
_REASONS = {State.START: "it waits to be loaded", State.END: "unloaded"}


class IndexBody(BaseModel):
    """POST /v2/repository/index."""

    model_config = ConfigDict(extra="forbid")

    ready: bool = False


class Indexed(TypedDict):
    """One version of a model."""

    name: str
    version: str  # a whole number
    state: TritonState
    reason: str


class LoadBody(BaseModel):
    """POST /v2/repository/models/NAME/load and unload. Triton's `parameters` would change how the
    server was set up, and are refused."""

    model_config = ConfigDict(extra="forbid")


class LoadAnswer(TypedDict):
    """As KServe has it; Triton's is empty."""

    name: str
    load: bool


class UnloadAnswer(TypedDict):
    """As KServe has it; Triton's is empty."""

    name: str
    unload: bool


def index(body: IndexBody, models: Models, caller: Caller) -> Answer:
    """All versions that are known, or those that take requests."""
    versions = [
        _indexed(name, each) for name, known in models_by_name(models).items() for each in known
    ]
    return Answer([each for each in versions if not body.ready or each["state"] == "READY"])


def load(body: LoadBody, models: Models, caller: Caller) -> LoadAnswer:
    """Have a model in memory; the answer comes once it takes requests.

    Raises:
        OperatorOnly: the caller may not.
        RequestError: it cannot be loaded.
    """
    caller.require_operator()
    loaded = caller.hold(models.resolve_any, caller.params["name"])
    return {"name": loaded.name, "load": True}


def unload(body: LoadBody, models: Models, caller: Caller) -> UnloadAnswer:
    """Let a model leave memory, once its requests have ended.

    Raises:
        OperatorOnly: the caller may not.
        ModelNotFound, ModelStays: it cannot.
    """
    caller.require_operator()
    name = caller.params["name"]
    models.release(name)
    return {"name": name, "unload": True}


def models_by_name(models: Models) -> dict[str, list[ServableVersion]]:
    """The models by the names to ask for them by, each with its versions, the first one first."""
    return {
        model.public_name: sorted(model.versions.values(), key=lambda each: each.number)
        for model in models.registry.served()
    }


def _indexed(name: str, version: ServableVersion) -> Indexed:
    return {
        "name": name,
        "version": str(version.number),
        "state": _STATES[version.state],
        "reason": version.error or _REASONS.get(version.state, ""),
    }


OPERATIONS: tuple[Operation[Any], ...] = (
    Operation(
        "repository_index",
        "All versions of all models, by Triton's name",
        index,
        path="/v2/repository/index",
        body=IndexBody,
        needs_body=False,
        answer=list[Indexed],
        error_form=MESSAGE_ALONE,
    ),
    Operation(
        "repository_load",
        "Have a model in memory",
        load,
        path="/v2/repository/models/{name}/load",
        body=LoadBody,
        needs_body=False,
        answer=LoadAnswer,
        error_form=MESSAGE_ALONE,
    ),
    Operation(
        "repository_unload",
        "Let a model leave memory",
        unload,
        path="/v2/repository/models/{name}/unload",
        body=LoadBody,
        needs_body=False,
        answer=UnloadAnswer,
        error_form=MESSAGE_ALONE,
    ),
)
