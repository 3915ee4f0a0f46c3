"""One request at a time for a scheduler."""

from gemma_server.engine.request import Handle, Request
from gemma_server.engine.scheduler import Scheduler


def submit_one(
    scheduler: Scheduler,
    request: Request,
    deadline: float | None = None,
    caller: str = "",
    *,
    returns: bool = True,
) -> Handle:
    """The handle of this one."""
    [handle] = scheduler.submit([request], deadline, caller, returns=returns)
    return handle
