"""The engine of a model that embeds texts: requests in, batches of like length to the device."""

import math
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from gemma_server.engine.device_thread import DeviceThread
from gemma_server.engine.priority import PRIORITIES, Priority, PriorityTurns
from gemma_server.engine.queue import LONGEST_WAIT_S
from gemma_server.engine.request import Timestamps
from gemma_server.engine.stats import EngineStats
from gemma_server.engine.watchdog import StepTimes
from gemma_server.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EmptyPrompt,
    GenerationFailed,
    QueueFull,
    RequestError,
)

Tokens = tuple[int, ...]
Vector: TypeAlias = "array[float]"  # of float32
_STEPS = 32  # remembered; a stall can make one look quick, and it must be forgotten


class EmbeddingRunner(Protocol):
    """Runs the model on batches of texts, each padded to one of `lengths`."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of a padded text, ascending."""
        ...

    def rows(self, length: int) -> int:
        """The most texts of this length in one step."""
        ...

    def embed(self, texts: Sequence[Tokens], length: int) -> list[Vector]:
        """The embedding of each text."""
        ...


@dataclass(frozen=True)
class EmbeddingLimits:
    """What the engine accepts."""

    context_length: int  # tokens of a text
    max_queue: int  # requests that wait
    max_queue_tokens: int  # in them, when there are several


class Texts:
    """The texts of one request; `wait` for their embeddings, then read `vectors`."""

    def __init__(
        self,
        texts: Sequence[Tokens],
        lengths: Sequence[int],
        deadline: float | None,
        caller: str,
        priority: Priority,
    ) -> None:
        self.texts, self.deadline, self.caller = texts, deadline, caller
        self.priority = priority
        self.timestamps = Timestamps(submitted=time.monotonic())
        self.vectors: list[Vector] = [array("f")] * len(texts)
        self.error: RequestError | None = None
        self.cancelled = False
        # By length, those that no step has had, and their tokens.
        self._lines: dict[int, deque[int]] = {}
        self.tokens = sum(map(len, texts))
        for index in sorted(range(len(texts)), key=lambda index: len(texts[index])):
            length = next(length for length in lengths if length >= len(texts[index]))
            self._lines.setdefault(length, deque()).append(index)
        self._left = len(texts)
        self._over = threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether all embeddings are there, or will never be."""
        return self._over.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end, at most so many seconds; whether it has come.

        Raises:
            RequestError: the request has failed.
        """
        if not self._over.wait(timeout_s):
            return False
        if self.error is not None:
            raise self.error.with_traceback(None)
        return True

    def shortest(self) -> int:
        """The least padded length of its texts that are left."""
        return min(self._lines)

    def take(self, length: int, most: int) -> Iterator[int]:
        """Take out texts of this padded length."""
        line = self._lines.get(length, deque())
        for _ in range(min(most, len(line))):
            index = line.popleft()
            self.tokens -= len(self.texts[index])
            yield index
        if not line:
            self._lines.pop(length, None)

    def deliver(self, index: int, vector: Vector) -> None:
        """Keep the embedding of a text."""
        if not all(map(math.isfinite, vector)):
            self.fail(GenerationFailed("the model computed no finite number for this text"))
            return
        self.vectors[index] = vector
        self._left -= 1
        if self._left == 0:
            self._end()

    def fail(self, error: RequestError) -> None:
        """End with an error."""
        if not self.is_over:
            self.error = error
            self._end()

    def cancel(self) -> None:
        """End without embeddings."""
        if not self.is_over:
            self.cancelled = True
            self._end()

    def _end(self) -> None:
        self.timestamps.first_token = self.timestamps.ended = time.monotonic()
        self._over.set()


class EmbeddingEngine(DeviceThread):
    """Embeds the texts of all requests on one runner.

    Any thread may submit and cancel. The two classes take turns as `PriorityTurns` says, and so do
    the callers in each: a step begins with the shortest texts of the caller whose turn was longest
    ago, and is filled with others' texts of that length.
    """

    def __init__(
        self,
        runner: EmbeddingRunner,
        limits: EmbeddingLimits,
        on_death: Callable[[BaseException], None],
        step_times: StepTimes | None = None,
    ) -> None:
        super().__init__(on_death, step_times or StepTimes())
        self._runner, self._limits = runner, limits
        self._waiting: list[Texts] = []  # what has not ended, in the order that it came
        self._turns: dict[str, int] = {}  # of callers in the list: the number of their last step
        self._priority_turns = PriorityTurns()
        self._steps = 0
        self._token_s: deque[float] = deque(maxlen=_STEPS)  # seconds for a token, padding too

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""
        return self._limits.context_length

    @property
    def longest_prompt(self) -> int:
        """The same."""
        return self._limits.context_length

    def stats(self) -> EngineStats:
        """The figures at this moment: one request is worked on, and the others wait."""
        count = len(self._waiting)
        active = min(1, count)
        return EngineStats(1, active, count - active, self._steps, tokens_sampled=0)

    def check_prompt(self, tokens: int) -> None:
        """Raise `PromptRefused` when a text of so many tokens can never be accepted."""
        if tokens == 0:
            raise EmptyPrompt
        if tokens > self._limits.context_length:
            raise ContextLengthExceeded(tokens, self._limits.context_length)

    def submit(
        self,
        texts: Sequence[Tokens],
        deadline: float | None = None,
        caller: str = "",
        *,
        priority: Priority = "interactive",
    ) -> Texts:
        """Queue a request of one text or more; `deadline` is on the monotonic clock.

        Raises:
            EmptyPrompt, ContextLengthExceeded: a text can never be accepted.
            QueueFull: there is no room in the queue.
            DeadlineExceeded: by what was measured, the embeddings cannot come in time.
            GenerationFailed, NotReady: the engine is dead, or has stopped.
        """
        for text in texts:
            self.check_prompt(len(text))
        request = Texts(texts, self._runner.lengths, deadline, caller, priority)
        with self._changed:
            self._require_alive()
            self._refuse_when_full(request.tokens)
            self._refuse_when_late(request)
            self._waiting.append(request)
            self._changed.notify()
        return request

    def cancel(self, request: Texts) -> None:
        """End a request early; what of it is on the device is dropped."""
        with self._changed:
            request.cancel()
            self._waiting = [waiting for waiting in self._waiting if not waiting.is_over]

    def _refuse_when_full(self, more: int) -> None:
        """One request is always taken: there is none that is too large for an empty queue."""
        limits, requests = self._limits, len(self._waiting)
        before = sum(waiting.tokens for waiting in self._waiting)
        by_places = requests > limits.max_queue
        if not requests or not (by_places or before + more > limits.max_queue_tokens):
            return
        wait_s = before * max(self._token_s, default=0.0)
        raise QueueFull(
            "requests" if by_places else "tokens",
            queued=requests - 1 if by_places else before,
            more=1 if by_places else more,
            limit=limits.max_queue if by_places else limits.max_queue_tokens,
            retry_after_s=max(1, math.ceil(min(wait_s, LONGEST_WAIT_S))),
        )

    def _refuse_when_late(self, request: Texts) -> None:
        """Counts those of the same class: of the other, none need go first."""
        if request.deadline is None:
            return
        alike = (other for other in self._waiting if other.priority == request.priority)
        tokens = sum(other.tokens for other in (*alike, request))
        soonest = tokens * min(self._token_s, default=0.0)
        left = max(0.0, request.deadline - time.monotonic())
        if soonest > left:
            raise DeadlineExceeded(
                f"the embeddings would take {soonest:.1f} s or more, and {left:.1f} s are left"
            )

    def _drive(self) -> None:
        while (step := self._next_step()) is not None:
            length, parts = step
            self._progress_at = began = time.monotonic()
            vectors = self._runner.embed([owner.texts[index] for owner, index in parts], length)
            took = time.monotonic() - began
            self._step_times.took(took)
            self._progress_at = None
            self._token_s.append(took / (length * len(parts)))
            self._steps += 1
            with self._changed:
                for (owner, index), vector in zip(parts, vectors, strict=True):
                    owner.deliver(index, vector)
                self._waiting = [request for request in self._waiting if not request.is_over]

    def _next_step(self) -> tuple[int, list[tuple[Texts, int]]] | None:
        """A padded length and the texts for it; None when the engine is stopping."""
        with self._changed:
            while not self._stopping:
                self._end_late()
                if self._waiting:
                    return self._filled_step()
                self._changed.wait()
            return None

    def _filled_step(self) -> tuple[int, list[tuple[Texts, int]]]:
        callers = {request.caller for request in self._waiting}
        self._turns = {caller: self._turns.get(caller, -1) for caller in callers}
        by_class = {each: [r for r in self._waiting if r.priority == each] for each in PRIORITIES}
        waits = {each: bool(requests) for each, requests in by_class.items()}
        first = self._priority_turns.next(**waits)
        lead = min(by_class[first], key=lambda request: self._turns[request.caller])
        self._turns[lead.caller] = self._steps
        length = lead.shortest()
        parts: list[tuple[Texts, int]] = []
        others = (request for requests in by_class.values() for request in requests)
        for request in (lead, *others):  # the lead has given all that it can by then
            most = self._runner.rows(length) - len(parts)
            for index in request.take(length, most):
                if request.timestamps.admitted is None:
                    request.timestamps.admitted = time.monotonic()
                parts.append((request, index))
        return length, parts

    def _end_late(self) -> None:
        now = time.monotonic()
        for request in self._waiting:
            if request.deadline is not None and request.deadline <= now:
                request.fail(DeadlineExceeded("the time allowed was over before the embeddings"))
        self._waiting = [request for request in self._waiting if not request.is_over]

    def _fail_all(self, error: RequestError) -> None:
        for request in self._waiting:
            request.fail(error)
        self._waiting.clear()
