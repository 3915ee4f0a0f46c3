"""Every error this package raises on purpose.

    GemmaServerError
    ├── UsageError                 settings or arguments that cannot work        exit code 2
    ├── ModelLoadError             the model could not be loaded                 exit code 3
    └── RequestError               one request failed; the server is fine
        ├── InvalidRequest         a field of it is wrong: `param`               400
        ├── PromptRefused          no prompt can be like that                    400
        │   ├── InvalidText
        │   ├── EmptyPrompt
        │   ├── ChatRefused
        │   └── ContextLengthExceeded
        ├── ExceedsRateLimit       more tokens than may ever pass in a minute    400
        ├── BatchTooLarge          more prompts at once than can ever be taken   400
        ├── GrammarRefused         answers cannot be kept to this                400
        ├── ConstraintFailed       an answer could not go on as it has to be     400
        ├── ModelNotFound          another model was asked for                   404
        ├── OperatorOnly           anybody asks for what an operator may          403
        ├── ModelStays             the model may not leave memory                400
        ├── WrongKind              the model does something else                 400
        ├── Overloaded             the queue is full, or another limit is met    429
        │   ├── QueueFull
        │   └── RateLimited
        ├── NotReady               the model is loading, or the server drains    503
        ├── DeadlineExceeded       the client's own time limit ran out           504
        └── GenerationFailed       the model or the device failed                500

Below the api an error has facts: numbers and limits. Which field or flag they are about, and which
status they get, the api says (`api/errors.py`).
"""

from typing import Literal


class GemmaServerError(Exception):
    """Base of all errors raised on purpose; its text is meant for a person."""


class UsageError(GemmaServerError):
    """A setting or a command-line argument cannot work."""


class ModelLoadError(GemmaServerError):
    """The model's files are missing, damaged, of another kind, or do not fit together."""


class Disconnected(GemmaServerError):
    """The client has closed the connection or given up: there is nobody to answer."""


class RequestError(GemmaServerError):
    """One request cannot be answered. `code` is the stable, machine-readable reason."""

    code = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(RequestError):
    """The request itself is wrong; `param` names the field, if it is one field's fault."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value"):
        super().__init__(message)
        self.param = param
        self.code = code


class PromptRefused(RequestError):
    """Such a prompt can never be accepted."""

    code = "invalid_value"


class InvalidText(PromptRefused):
    """The text is not valid Unicode: a lone surrogate is at `position`, in characters."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"the text has a lone surrogate at character {position}: not valid Unicode"
        )
        self.position = position


class EmptyPrompt(PromptRefused):
    """The prompt has no token."""

    def __init__(self) -> None:
        super().__init__("the prompt is empty")


class ChatRefused(PromptRefused):
    """The model's chat template cannot render the messages: `reason`, at its line `line`."""

    def __init__(self, reason: str, line: int | None) -> None:
        where = "" if line is None else f", line {line}"
        super().__init__(f"the model's chat template{where}: {reason}")
        self.line = line


class ContextLengthExceeded(PromptRefused):
    """The prompt does not fit the context: `prompt_tokens` tokens, room for `limit`. `is_least`: it
    has at least so many, and was not encoded."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, limit: int, *, is_least: bool = False) -> None:
        self.tokens = f"at least {prompt_tokens} tokens" if is_least else f"{prompt_tokens} tokens"
        super().__init__(f"the prompt has {self.tokens}, and at most {limit} fit")
        self.prompt_tokens = prompt_tokens
        self.limit = limit


class BatchTooLarge(RequestError):
    """So many `requests` at once can never be taken: slots and queue have room for `limit`."""

    code = "invalid_value"

    def __init__(self, requests: int, limit: int) -> None:
        super().__init__(f"{requests} prompts at once, and at most {limit} can be taken")
        self.requests = requests
        self.limit = limit


class GrammarRefused(RequestError):
    """Answers cannot be kept to this: `reason`, at `where` within it."""

    code = "invalid_grammar"

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason, self.where = reason, where


class ConstraintFailed(RequestError):
    """An answer cannot go on as the request wants it."""

    code = "constraint_failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the answer cannot go on as it has to be: {reason}")
        self.reason = reason


class ModelNotFound(RequestError):
    """The request names a model that this server does not have."""

    code = "model_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"model {name[:100]!r} not found")


class OperatorOnly(RequestError):
    """Anybody could ask for this, and only an operator may."""

    code = "operator_only"

    def __init__(self) -> None:
        super().__init__("this needs an API key (--api-key-file), or the Unix socket of --uds")


class ModelStays(RequestError):
    """The model of this name may not leave memory."""

    code = "model_stays"

    def __init__(self, name: str) -> None:
        super().__init__(f"model {name[:100]!r} stays in memory: it is pinned, or the only one")


class WrongKind(RequestError):
    """The model of this name `does` something else than what was asked for."""

    code = "wrong_kind_of_model"

    def __init__(self, name: str, does: str, asked: str) -> None:
        super().__init__(f"model {name[:100]!r} {does}, it {asked}")


class Overloaded(RequestError):
    """There is no room now; try again in about `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Overloaded):
    """`queued` requests or prompt tokens wait, `more` would come, and `limit` are allowed."""

    def __init__(
        self,
        unit: Literal["requests", "tokens"],
        *,
        queued: int,
        more: int,
        limit: int,
        retry_after_s: int,
    ) -> None:
        super().__init__(f"{queued} {unit} are queued of {limit}", retry_after_s=retry_after_s)
        self.unit = unit
        self.queued, self.more, self.limit = queued, more, limit


class RateLimited(Overloaded):
    """A `holder` has `limit` of `unit` a minute; a request wants `wanted`, and `left` are left."""

    code = "rate_limited"

    def __init__(
        self,
        holder: Literal["key", "model"],
        unit: Literal["requests", "tokens"],
        *,
        wanted: int,
        left: int,
        limit: int,
        retry_after_s: int,
    ) -> None:
        message = f"the {holder} has {limit} {unit} a minute: {left} are left, {wanted} are wanted"
        super().__init__(message, retry_after_s=retry_after_s)
        self.holder, self.unit = holder, unit
        self.wanted, self.left, self.limit = wanted, left, limit


class ExceedsRateLimit(RequestError):
    """A request may use so many `tokens`, and its `holder` never has more than `limit`."""

    code = "exceeds_rate_limit"

    def __init__(self, holder: Literal["key", "model"], *, tokens: int, limit: int) -> None:
        super().__init__(f"the {holder} has {limit} tokens a minute: {tokens} are wanted")
        self.holder, self.tokens, self.limit = holder, tokens, limit


class NotReady(RequestError):
    """The model is still loading, or the server is draining; `code` says which."""

    def __init__(self, code: str, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """The time that the client allowed ran out."""

    code = "deadline"


class GenerationFailed(RequestError):
    """The model or the device failed while working on this request."""

    code = "generation_failed"
