"""A model on its way from loading to ready to draining, as the routes see it."""

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
from gemma_server.errors import ContextLengthExceeded, NotReady
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.text.chat_template import ChatTemplate
from gemma_server.text.constraint import Grammars
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.weights.sampling_defaults import SamplingDefaults

Status = Literal["loading", "ready", "stuck", "draining"]


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
    info: ModelInfo = field(default=ModelInfo(), kw_only=True)
    ready_at: float = field(default_factory=time.time, kw_only=True)  # seconds since 1970

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


class ServedModel:
    """One model under its name. The loading thread changes its status; handlers only read it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stage = "starting"
        self.progress: float | None = None  # share of the stage that is done, when known
        self.detail = ""  # bytes done, bytes in total, and the rate
        self._loaded: LoadedModel | None = None
        self._draining = False

    @property
    def status(self) -> Status:
        """Whether the model is loading, takes requests, waits for a device, or drains."""
        if self._draining:
            return "draining"
        if self._loaded is None:
            return "loading"
        return "stuck" if self._loaded.worker.is_slow() else "ready"

    @property
    def loaded(self) -> LoadedModel | None:
        """The model once it has loaded, also while it drains."""
        return self._loaded

    def at(self, stage: str, progress: float | None = None, detail: str = "") -> None:
        """Say what loading is doing now."""
        self.stage, self.progress, self.detail = stage, progress, detail

    def ready(self, loaded: LoadedModel) -> None:
        """The model can answer from now on, under its own name."""
        self.name, self._loaded = loaded.name, loaded
        if not self._draining:
            self.at("ready", 1.0)

    def drain(self) -> None:
        """Refuse new requests; those in flight go on."""
        self._draining = True
        self.at("draining")

    def readiness(self) -> Readiness:
        """The status, and how far loading is, for clients that wait."""
        return {
            "status": self.status,
            "stage": self.stage,
            "progress": self.progress,
            "model": self.name,
        }

    def require_ready(self) -> LoadedModel:
        """The model, if it takes requests.

        Raises:
            NotReady: it is loading, stuck or draining.
        """
        if self._draining:
            raise NotReady("draining", "the server is shutting down", retry_after_s=5)
        if self._loaded is None:
            done = "" if self.progress is None else f", {self.progress:.0%}"
            raise NotReady("loading", f"the model is loading ({self.stage}{done})", retry_after_s=2)
        if self._loaded.worker.is_slow():
            age_s = self._loaded.worker.step_age_s()
            message = f"the device has not answered for {age_s:.0f} s"
            raise NotReady("stuck", message, retry_after_s=10)
        return self._loaded


def byte_rate(done: int, total: int, seconds: float) -> str:
    """Bytes done, bytes in total, and the rate, as text for a person."""
    rate = done / max(1e-3, seconds)
    return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {rate / 1e6:,.0f} MB/s"
