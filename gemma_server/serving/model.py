"""A model that has loaded, as the routes see it."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

from typing_extensions import TypedDict

from gemma_server.engine.embedding import EmbeddingEngine
from gemma_server.engine.engine import Engine
from gemma_server.engine.stats import EngineStats
from gemma_server.errors import ContextLengthExceeded
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.serving.engines import OnDeath, Wrap
from gemma_server.serving.rate_limit import NO_LIMIT, RateLimit
from gemma_server.text.chat_template import ChatTemplate
from gemma_server.text.constraint import Grammars
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.weights.sampling_defaults import SamplingDefaults

Status = Literal["loading", "ready", "stuck", "draining"]


class Stages(Protocol):
    """What is told how far loading is."""

    def at(self, stage: str, progress: float | None = None, detail: str = "") -> None:
        """Say what loading is doing now, and the share of it that is done, when known."""
        ...


@dataclass(frozen=True)
class ModelInfo:
    """What the routes that list models say of one."""

    family: str = "fake"
    format: str = "fake"
    stored_as: str = "none"  # the type of most of the weights in the file
    parameters: int = 0
    file_bytes: int = 0
    trained_context: int = 0  # tokens

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that stay the same while all these do."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


class OpenedModel(Protocol):
    """A model whose files are open, and none of whose weights are in memory."""

    @property
    def needs_bytes(self) -> int:
        """The memory that it takes at least: weights and cache."""
        ...

    @property
    def device_bytes(self) -> float:
        """The memory that its device has for models; infinity where nobody tells."""
        ...

    def load(self, on_death: OnDeath, wrap: Wrap = ...) -> "LoadedModel":
        """Load it. The engine gets the runner that `wrap` returns: the benchmark wraps it to time
        each step.

        Raises:
            ModelLoadError: it cannot be loaded; the text says what to do.
        """
        ...


class Worker(Protocol):
    """What runs a model on the device: it has the queue, and a thread of its own."""

    @property
    def context_length(self) -> int:
        """The most tokens of a request."""
        ...

    @property
    def longest_prompt(self) -> int:
        """The most of them that may be the client's."""
        ...

    def check_prompt(self, tokens: int) -> None:
        """Raise `PromptRefused` when a prompt of so many tokens can never be accepted."""
        ...

    def stats(self) -> EngineStats:
        """The figures at this moment."""
        ...

    def step_age_s(self) -> float:
        """Seconds since the device, which has work, last ended a step; 0 when it is idle."""
        ...

    def is_slow(self) -> bool:
        """Whether the device's step takes far longer than any before."""
        ...

    def stop(self) -> None:
        """Fail all requests, and end the thread."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """What every model has, whatever it answers with."""

    name: str
    tokenizer: Tokenizer
    device: str
    load_s: float  # from the start of loading to ready
    compilations: CompileCounter  # since the start
    weight_bytes: int = field(default=0, kw_only=True)  # on the device
    memory_bytes: int = field(default=0, kw_only=True)  # with its cache, and what programs need
    info: ModelInfo = field(default=ModelInfo(), kw_only=True)
    ready_at: float = field(default_factory=time.time, kw_only=True)  # seconds since 1970
    version: int = field(default=1, kw_only=True)
    rate_limit: RateLimit = field(default=NO_LIMIT, kw_only=True)

    @property
    def worker(self) -> Worker:
        """What runs it."""
        raise NotImplementedError

    @property
    def context_length(self) -> int:
        """The most tokens of a request."""
        return self.worker.context_length

    def refuse_what_cannot_fit(self, texts: Sequence[str]) -> None:
        """Refuse texts that are too long together for one prompt, without encoding them.

        Raises:
            ContextLengthExceeded: with the least number of tokens that they have.
        """
        if sum(map(len, texts)) <= self.worker.longest_prompt:
            return  # the longest piece has more bytes than any character
        least = sum(map(self.tokenizer.least_tokens, texts))
        if least > self.worker.longest_prompt:
            raise ContextLengthExceeded(least, self.worker.longest_prompt, is_least=True)


@dataclass(frozen=True)
class GenerativeModel(LoadedModel):
    """A model that writes text, with its chat template and its engine."""

    chat: ChatTemplate
    engine: Engine
    sampling: SamplingDefaults = field(default=SamplingDefaults(), kw_only=True)

    @cached_property
    def grammars(self) -> Grammars:
        """What keeps answers to a form."""
        return Grammars(self.tokenizer)

    token_bytes: int = field(default=0, kw_only=True)  # of cache on the device, for each token
    max_steps: int | None = field(default=None, kw_only=True)  # that a request may ask for

    @property
    def worker(self) -> Engine:
        """The engine."""
        return self.engine


@dataclass(frozen=True)
class EmbeddingModel(LoadedModel):
    """A model that makes embeddings of texts."""

    engine: EmbeddingEngine
    width: int  # numbers of an embedding

    @property
    def worker(self) -> EmbeddingEngine:
        """The engine."""
        return self.engine

    def encode(self, text: str) -> list[int]:
        """`<bos>`, the text's ids and `<eos>`: the model was trained with both.

        Raises:
            InvalidText: the text is not valid Unicode (a lone surrogate).
        """
        return [*self.tokenizer.encode(text), self.tokenizer.eos_id]


class Readiness(TypedDict):
    """The model's status, and how far loading is."""

    status: Status
    stage: str
    progress: float | None  # the share of the stage that is done, when known
    model: str


def byte_rate(done: int, total: int, seconds: float) -> str:
    """Bytes done, bytes in total, and the rate, as text for a person."""
    rate = done / max(1e-3, seconds)
    return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {rate / 1e6:,.0f} MB/s"
