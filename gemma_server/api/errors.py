"""What clients are told of an error: the number HTTP has for it, and the facts."""

from typing import NotRequired

from typing_extensions import TypedDict

from gemma_server.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    RequestError,
)


class ErrorFacts(TypedDict):
    """What went wrong."""

    type: str
    message: str  # for a person
    param: str | None  # the field at fault
    code: str | None  # for a program
    request_id: str
    prompt_tokens: NotRequired[int]  # of a prompt that is too long
    limit: NotRequired[int]  # tokens


_STATUS: dict[type[RequestError], tuple[int, str]] = {
    InvalidRequest: (400, "invalid_request_error"),
    ContextLengthExceeded: (400, "invalid_request_error"),
    ModelNotFound: (404, "not_found_error"),
    Overloaded: (429, "rate_limit_error"),
    NotReady: (503, "unavailable_error"),
    DeadlineExceeded: (504, "timeout_error"),
    GenerationFailed: (500, "server_error"),
}
CLIENT_GONE = 499  # nginx's number


def status_of(error: RequestError) -> int:
    """The HTTP status."""
    return _STATUS[type(error)][0]


def facts(error: RequestError, request_id: str) -> ErrorFacts:
    """One of our own errors."""
    _, kind = _STATUS[type(error)]
    found = error_facts(kind, error.message, error.code, request_id, error.param)
    if isinstance(error, ContextLengthExceeded):
        found["prompt_tokens"], found["limit"] = error.prompt_tokens, error.limit
    return found


def error_facts(
    kind: str, message: str, code: str | None, request_id: str, param: str | None = None
) -> ErrorFacts:
    """Any error."""
    return {
        "type": kind,
        "message": message,
        "param": param,
        "code": code,
        "request_id": request_id,
    }
