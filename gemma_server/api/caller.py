"""The caller of a handler, over any transport."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from gemma_server.api.timing import Stages
from gemma_server.engine.priority import Priority
from gemma_server.errors import OperatorOnly
from gemma_server.serving.model import LoadedModel
from gemma_server.serving.models import Lease, Model
from gemma_server.serving.rate_limit import NO_LIMIT, RateLimit


class Running(Protocol):
    """A job that has begun."""

    def cancel(self) -> None:
        """End it early, from any thread."""
        ...

    def stages(self) -> dict[str, float]:
        """Milliseconds of each stage up to now."""
        ...


@dataclass(frozen=True)
class Caller:
    """What a handler knows of the client that waits for the answer."""

    request_id: str
    held: ExitStack  # the transport closes it once the answer is complete
    disconnected: Callable[[], bool] = lambda: False
    deadline: float | None = None  # on the monotonic clock
    priority: Priority = "interactive"  # unless the body says another
    stages: Stages = field(default_factory=dict)  # milliseconds of each stage so far
    params: Mapping[str, str] = field(default_factory=dict)  # of a path and its query
    on_job: Callable[[Running], None] = lambda job: None  # called with the job when it begins
    on_lease: Callable[[LoadedModel], None] = lambda loaded: None  # called with what answers
    on_degraded: Callable[[int], None] = lambda steps: None  # called with what answers are cut to
    api_key: str = ""  # a digest of it, where the server wants one
    rate_limit: RateLimit = NO_LIMIT  # of that key
    connection: str = ""  # a name that no other open connection has
    affinity: str = ""  # what requests have in common that are to get the same version
    is_operator: bool = False  # it has an API key, or came by a Unix socket

    @property
    def asked(self) -> str:
        """The model that the path names, with its version or label."""
        name = self.params["name"]
        if "version" in self.params:
            return f"{name}@{self.params['version']}"
        return f"{name}:{self.params['label']}" if "label" in self.params else name

    def shares_as(self, user: str | None) -> tuple[str, bool]:
        """Who shares slots and the queue with others: the holder of an API key, else the request's
        user, else the connection; and whether it could come back by this name. The next request
        of a connection's client may come over another."""
        if self.api_key:
            return f"key {self.api_key}", True
        if user is None:
            return f"connection {self.connection}", False
        return f"user {hashlib.sha256(user.encode(errors='replace')).hexdigest()}", True

    def require_operator(self) -> None:
        """Refuse what is for those alone who look after the server.

        Raises:
            OperatorOnly: it is not known to be one of them.
        """
        if not self.is_operator:
            raise OperatorOnly

    def hold(
        self,
        resolve: Callable[[str | None, "Caller | None"], Lease[Model]],
        name: str | None,
        *,
        waits: bool = True,
    ) -> Model:
        """The model of this name, which stays loaded until the answer is complete. `resolve` is
        that of `Models`. A model that is loaded when it is asked for is so, if the caller waits."""
        loaded = self.held.enter_context(resolve(name, self if waits else None))
        self.on_lease(loaded)
        return loaded
