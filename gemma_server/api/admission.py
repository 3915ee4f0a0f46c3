"""Taking a request in: it is charged to its key and its model, and a refusal is counted."""

from collections.abc import Iterator
from contextlib import contextmanager

from gemma_server.api.caller import Caller
from gemma_server.errors import DeadlineExceeded, QueueFull, RateLimited, RequestError
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import LoadedModel
from gemma_server.serving.rate_limit import Charge


@contextmanager
def admitting(
    loaded: LoadedModel, caller: Caller, metrics: Metrics, tokens: int
) -> Iterator[Charge]:
    """Charge a request that may use so many tokens; an error within this block gives all back.

    Raises:
        RateLimited, ExceedsRateLimit: by the key or the model.
    """
    try:
        charge = Charge((caller.rate_limit, loaded.rate_limit), tokens)
        try:
            yield charge
        except BaseException:
            charge.cancel()
            raise
    except RequestError as error:
        if (reason := _reason(error)) is not None:
            metrics.rejected(reason)
        raise


def _reason(error: RequestError) -> str | None:
    """Why there was no room or time; None if the request itself is at fault."""
    match error:
        case RateLimited():
            return f"{error.holder}_{error.unit}"
        case QueueFull():
            return "queue"
        case DeadlineExceeded():
            return "deadline"
    return None
