"""Who asks, over whatever carries the request."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from gemma_server.api.timing import Stages
from gemma_server.serving.model import LoadedModel
from gemma_server.serving.models import Lease


class Running(Protocol):
    """A job that has begun."""

    def cancel(self) -> None:
        """End it early, from any thread."""
        ...

    def timings(self) -> dict[str, float]:
        """Milliseconds of each stage up to now."""
        ...


@dataclass(frozen=True)
class Caller:
    """What a handler knows of whoever waits for the answer."""

    request_id: str
    held: ExitStack  # closed by what carries the request, once the answer is complete
    disconnected: Callable[[], bool] = lambda: False
    deadline: float | None = None  # on the monotonic clock
    stages: Stages = field(default_factory=dict)  # where the request's time went so far
    params: Mapping[str, str] = field(default_factory=dict)  # of a path and its query
    on_job: Callable[[Running], None] = lambda job: None  # is told of it as it begins

    def hold(self, lease: Lease) -> LoadedModel:
        """The leased model, which stays loaded until the answer is complete."""
        return self.held.enter_context(lease)
