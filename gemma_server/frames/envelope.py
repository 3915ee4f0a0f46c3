"""What a request over frames says of how it is to be served, beside what it asks for."""

import time
from typing import Any, NamedTuple

from gemma_server.api.schemas import check_priority
from gemma_server.engine.priority import Priority
from gemma_server.errors import InvalidRequest

_MAX_TIMEOUT_MS = 10**9
_MAX_AFFINITY = 256  # characters


class Envelope(NamedTuple):
    """HTTP has headers for these."""

    deadline: float | None = None  # on the monotonic clock
    priority: Priority = "interactive"
    affinity: str = ""


def open_envelope(document: dict[str, Any]) -> Envelope:
    """Take them out of a request's document.

    Raises:
        InvalidRequest: one of them cannot be.
    """
    deadline = _deadline_of(document.pop("timeout_ms", None))
    priority = check_priority(document.pop("priority", None), "priority")
    return Envelope(deadline, priority, _affinity_of(document.pop("affinity", "")))


def _deadline_of(given: Any) -> float | None:
    match given:
        case None:
            return None
        case bool():
            pass
        case int() if 1 <= given <= _MAX_TIMEOUT_MS:
            return time.monotonic() + given / 1000
    raise InvalidRequest(
        f"timeout_ms must be a whole number of milliseconds from 1 to {_MAX_TIMEOUT_MS}",
        param="timeout_ms",
    )


def _affinity_of(given: Any) -> str:
    if isinstance(given, str) and len(given) <= _MAX_AFFINITY:
        return given
    message = f"affinity must be text of at most {_MAX_AFFINITY} characters"
    raise InvalidRequest(message, param="affinity")
