"""What clients are told of an error: its HTTP status, its fields, its form."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NotRequired

from typing_extensions import TypedDict

from gemma_server.errors import (
    BatchTooLarge,
    ConstraintFailed,
    ContextLengthExceeded,
    DeadlineExceeded,
    ExceedsRateLimit,
    GenerationFailed,
    GrammarRefused,
    InvalidRequest,
    ModelNotFound,
    ModelStays,
    NotReady,
    OperatorOnly,
    Overloaded,
    PromptRefused,
    QueueFull,
    RateLimited,
    RequestError,
    WrongKind,
)
from gemma_server.settings import flag_name

CLIENT_CLOSED = 499  # nginx's number
_STATUS: tuple[tuple[type[RequestError], int, str], ...] = (
    (InvalidRequest, 400, "invalid_request_error"),
    (PromptRefused, 400, "invalid_request_error"),
    (BatchTooLarge, 400, "invalid_request_error"),
    (ExceedsRateLimit, 400, "invalid_request_error"),
    (GrammarRefused, 400, "invalid_request_error"),
    (ConstraintFailed, 400, "invalid_request_error"),
    (ModelNotFound, 404, "not_found_error"),
    (OperatorOnly, 403, "permission_error"),
    (ModelStays, 400, "invalid_request_error"),
    (WrongKind, 400, "invalid_request_error"),
    (Overloaded, 429, "rate_limit_error"),
    (NotReady, 503, "unavailable_error"),
    (DeadlineExceeded, 504, "timeout_error"),
    (GenerationFailed, 500, "server_error"),
)


class ErrorBody(TypedDict):
    """What went wrong."""

    type: str
    message: str  # for a person
    param: str | None  # the field at fault
    code: str | None  # for a program
    request_id: str
    prompt_tokens: NotRequired[int]  # of a prompt that is too long
    limit: NotRequired[int]  # tokens


class ErrorAnswer(TypedDict):
    """Every error's form."""

    error: ErrorBody


class MessageAlone(TypedDict):
    """Every error on the routes of Ollama, TensorFlow Serving and the Open Inference Protocol."""

    error: str


@dataclass(frozen=True)
class ErrorForm:
    """How a dialect writes errors."""

    type: Any  # of the document, for its schema
    write: Callable[[ErrorBody], Mapping[str, Any]]


STANDARD = ErrorForm(ErrorAnswer, lambda body: {"error": body})
MESSAGE_ALONE = ErrorForm(MessageAlone, lambda body: {"error": body["message"]})


class InvalidPrompt(InvalidRequest):
    """A prompt was refused; `param` is the field that it came in."""

    def __init__(self, refusal: PromptRefused, param: str) -> None:
        super().__init__(_message(refusal), param=param, code=refusal.code)
        self.refusal = refusal


@contextmanager
def prompt_in(param: str) -> Iterator[None]:
    """Name the field `param` in the refusal of a prompt in this block.

    Raises:
        InvalidPrompt: in place of `PromptRefused`.
    """
    try:
        yield
    except PromptRefused as refusal:
        raise InvalidPrompt(refusal, param) from None


def status_of(error: RequestError) -> int:
    """The HTTP status."""
    return _row(error)[0]


def error_body(error: RequestError, request_id: str) -> ErrorBody:
    """The body of one of our own errors."""
    param = error.param if isinstance(error, InvalidRequest) else _PARAMS.get(type(error))
    body = make_error_body(_row(error)[1], _message(error), error.code, request_id, param)
    refusal = error.refusal if isinstance(error, InvalidPrompt) else error
    if isinstance(refusal, ContextLengthExceeded):
        body["prompt_tokens"], body["limit"] = refusal.prompt_tokens, refusal.limit
    return body


def make_error_body(
    kind: str, message: str, code: str | None, request_id: str, param: str | None = None
) -> ErrorBody:
    """The body of any error."""
    return {
        "type": kind,
        "message": message,
        "param": param,
        "code": code,
        "request_id": request_id,
    }


_HOLDER = {"key": "API key", "model": "model"}
_PARAMS: dict[type[RequestError], str] = {
    ModelNotFound: "model",
    ModelStays: "model",
    WrongKind: "model",
    BatchTooLarge: "prompt",
}


def _row(error: RequestError) -> tuple[int, str]:
    return next((status, kind) for base, status, kind in _STATUS if isinstance(error, base))


def _message(error: RequestError) -> str:
    """The message, with the flag that sets the limit where an operator can change it."""
    match error:
        case ContextLengthExceeded():
            return (
                # Clients know this error by these words where they do not look at its code.
                f"the prompt of {error.tokens} is longer than the model's context length: this "
                f"server takes at most {error.limit}; shorten it, or start the server with a "
                "larger --context-length"
            )
        case BatchTooLarge():
            return (
                f"{error.requests} prompts at once, and this server takes at most {error.limit} "
                "(--slots and --max-queue)"
            )
        case QueueFull(unit="requests"):
            waiting = f"{error.queued} requests are waiting (--max-queue {error.limit})"
            return f"the server is busy: {waiting}"
        case QueueFull():
            return (
                f"the server is busy: {error.queued} prompt tokens are waiting, and {error.more} "
                f"more would exceed --max-queue-tokens {error.limit}"
            )
        case RateLimited():
            return (
                f"this {_HOLDER[error.holder]} has {error.limit} {error.unit} a minute "
                f"({_per_minute(error.holder, error.unit)}): {error.left} are left, and this "
                f"request takes {error.wanted}; try again in {error.retry_after_s} s"
            )
        case ExceedsRateLimit():
            return (
                f"this request may take {error.tokens} tokens, with all that it may generate, and "
                f"this {_HOLDER[error.holder]} has {error.limit} a minute "
                f"({_per_minute(error.holder, 'tokens')}): shorten it, or ask for fewer tokens"
            )
    return error.message


def _per_minute(holder: str, unit: str) -> str:
    """The flag of a rate limit."""
    own = "key_" if holder == "key" else ""
    return flag_name(f"{own}{unit}_per_minute")
