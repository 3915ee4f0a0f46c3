"""The declaration of an operation: its types and its handler, in one place."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel

from gemma_server.api.caller import Caller
from gemma_server.api.errors import STANDARD, ErrorForm
from gemma_server.api.generation import Piece
from gemma_server.api.job import Job
from gemma_server.serving.models import Models

Document = Mapping[str, Any]  # a JSON object
Body = TypeVar("Body", bound=BaseModel | None)
EVENTS: Literal["text/event-stream"] = "text/event-stream"
LINES: Literal["application/x-ndjson"] = "application/x-ndjson"


@dataclass(frozen=True)
class Answer:
    """A whole answer that is not just a document: text, or a status other than 200."""

    content: Document | list[Document] | str | bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = None  # of text


class StreamForm(Protocol):
    """How a dialect puts an answer into parts."""

    def parts(self, index: int, piece: Piece) -> Iterable[Document]:
        """More text of one generation."""
        ...

    def keepalive(self) -> Document | None:
        """A part without text; None where the transport has a keepalive itself, or needs none."""
        ...

    def end(self, job: Job) -> Iterable[Document]:
        """The parts after the whole text of all generations."""
        ...


@dataclass(frozen=True)
class Stream:
    """An answer in parts, as they come."""

    job: Job
    form: StreamForm


@dataclass(frozen=True)
class StreamType:
    """What a streamed answer is made of."""

    content_type: Literal["text/event-stream", "application/x-ndjson"]
    part: Any  # the type of each part's JSON
    says_done: bool = True  # events end with one that is no JSON: [DONE], as at OpenAI


@dataclass(frozen=True)
class Operation(Generic[Body]):
    """One operation over any transport: HTTP by `method` and `path`, frames by `frame`."""

    name: str
    summary: str
    handle: Callable[[Body, Models, Caller], Document | Answer | Stream]
    method: Literal["GET", "POST"] = "POST"
    path: str | None = None  # with {parameters}; None: HTTP has no such route
    frame: str | None = None  # the operation's name over frames; None: frames do not have it
    body: type[Body] | None = None
    needs_body: bool = True  # else an empty one is an object without fields
    answer: Any = None  # the type of the JSON; None: text
    stream: StreamType | None = None
    error_form: ErrorForm = STANDARD
    text: tuple[str, ...] = ()  # content types
    query: tuple[tuple[str, tuple[str, ...]], ...] = ()  # parameters, each with its values
    unready: Any = None  # the type of the answer while the model loads, if that is no error
    waits: bool = False  # for its turn at a model, though it streams nothing

    @property
    def is_queued(self) -> bool:
        """Whether it waits its turn at a model: a client may limit the time, and say a priority."""
        return self.waits or self.stream is not None
