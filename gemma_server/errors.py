"""Every error this package raises on purpose.

    GemmaServerError
    ├── UsageError                 settings or arguments that cannot work        exit code 2
    ├── ModelLoadError             the model could not be loaded                 exit code 3
    └── RequestError               one request failed; the server is fine
        ├── InvalidRequest         something in it is wrong, `param` names it    400
        │   └── ContextLengthExceeded
        ├── ModelNotFound          another model was asked for                   404
        ├── Overloaded             the waiting line is full                      429
        ├── NotReady               the model is loading, or the server drains    503
        ├── DeadlineExceeded       the client's own time limit ran out           504
        └── GenerationFailed       the model or the device failed                500

Which status a `RequestError` gets is another table (`api/errors.py`), not this file's.
"""


class GemmaServerError(Exception):
    """Base of all errors raised on purpose; its text is meant for a person."""


class UsageError(GemmaServerError):
    """A setting or a command-line argument cannot work."""


class ModelLoadError(GemmaServerError):
    """The model's files are missing, damaged, of another kind, or do not fit together."""


class RequestError(GemmaServerError):
    """One request cannot be answered. `code` is the stable, machine-readable reason."""

    code = "error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(RequestError):
    """The request itself is wrong; `param` names the field."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value"):
        super().__init__(message, param=param)
        self.code = code


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the context: `prompt_tokens` tokens, room for `limit`."""

    def __init__(self, prompt_tokens: int, limit: int, *, param: str = "prompt") -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens, and this server takes at most {limit}; "
            "shorten it, or start the server with a larger --context-length",
            param=param,
            code="context_length_exceeded",
        )
        self.prompt_tokens = prompt_tokens
        self.limit = limit


class ModelNotFound(RequestError):
    """The request names a model that this server does not have."""

    code = "model_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"model {name[:100]!r} not found", param="model")


class Overloaded(RequestError):
    """The waiting line is full; try again in about `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(RequestError):
    """The model is still loading, or the server is draining; `code` says which."""

    def __init__(self, code: str, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """The time that the client allowed (`X-Request-Timeout-Ms`) ran out."""

    code = "deadline"


class GenerationFailed(RequestError):
    """The model or the device failed while working on this request."""

    code = "generation_failed"
