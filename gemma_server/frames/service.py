"""What frames mean: the interface between the framed socket and the model that it serves."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from gemma_server.api.caller import Caller

Part = tuple[int, Mapping[str, Any]]  # a frame's type, and its JSON but for the id
Op = Callable[[dict[str, Any], Caller], Iterator[Part]]


class Service(Protocol):
    """Called in threads of its own, several at once.

    Raises:
        RequestError: what the client is told.
        Disconnected: the caller gave up.
    """

    @property
    def ops(self) -> Mapping[str, Op]:
        """The operations of requests by name: each yields parts, the last of which ends it."""
        ...

    def raw(self, body: bytes, caller: Caller) -> bytes:
        """The answer to a raw frame."""
        ...

    def answered(self, op: str, status: int) -> None:
        """Told of every answer: to one of `ops`, to "raw", or to what was neither ("unknown")."""
        ...
