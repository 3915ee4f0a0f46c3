"""Which models there are, what is in memory, and for how long: for whoever looks after them."""

import math
from datetime import UTC, datetime
from typing import Literal

from typing_extensions import TypedDict

from gemma_server.api.caller import Caller
from gemma_server.api.moment import rfc3339
from gemma_server.api.operation import Operation
from gemma_server.serving.models import Models
from gemma_server.serving.served_model import ServedModel
from gemma_server.serving.version import ServableVersion


class Memory(TypedDict):
    """The memory of all models."""

    booked_bytes: int
    limit_bytes: int | None  # null: nobody has told


class VersionState(TypedDict):
    """One version of a model."""

    version: int
    state: Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
    stage: str  # of loading
    progress: float | None  # the share of the stage that is done, when known
    labels: list[str]
    bytes: int  # of memory that are booked
    requests: int  # that it answers now
    error: str  # why it has failed, if it has


class ModelState(TypedDict):
    """One model."""

    name: str
    default: bool  # it answers requests that name none
    pinned: bool
    loads: Literal["start", "request"]
    waiting: int  # requests, for it to load
    used_at: str | None  # when a request last came or ended; RFC 3339; null: it is not in memory
    expires_at: str | None  # when it leaves if nobody asks for it; null: it does not
    versions: list[VersionState]  # the newest first


class ModelStates(TypedDict):
    """GET /models."""

    memory: Memory
    models: list[ModelState]


def states(body: None, models: Models, caller: Caller) -> ModelStates:
    """All models, also those that are not in memory."""
    limit = models.registry.memory_limit
    return {
        "memory": {
            "booked_bytes": sum(each.booked_bytes for each in models.registry.versions()),
            "limit_bytes": None if math.isinf(limit) else int(limit),
        },
        "models": [_state(model, models) for model in models.registry.served()],
    }


def _state(model: ServedModel, models: Models) -> ModelState:
    residency, in_memory = model.residency, model.serving() is not None
    versions = sorted(model.versions.values(), key=lambda each: -each.number)
    return {
        "name": model.public_name,
        "default": model.name == models.registry.default,
        "pinned": model.stays,
        "loads": "request" if residency is not None and residency.on_request else "start",
        "waiting": model.waiting,
        "used_at": _moment(models.registry.wall_time(model.used_at)) if in_memory else None,
        "expires_at": _moment(models.registry.wall_time(model.expires_at())) if in_memory else None,
        "versions": [_version(model, each) for each in versions],
    }


def _version(model: ServedModel, version: ServableVersion) -> VersionState:
    return {
        "version": version.number,
        "state": version.state.value,
        "stage": version.stage,
        "progress": version.progress,
        "labels": sorted(name for name, number in model.labels.items() if number == version.number),
        "bytes": version.booked_bytes,
        "requests": version.leases,
        "error": version.error,
    }


def _moment(seconds: float) -> str | None:
    """Seconds since 1970 as text; null for what never comes."""
    if math.isinf(seconds):
        return None
    return rfc3339(datetime.fromtimestamp(seconds, UTC))


OPERATIONS = (
    Operation(
        "models",
        "Which models there are, and what is in memory",
        states,
        method="GET",
        path="/models",
        answer=ModelStates,
    ),
)
