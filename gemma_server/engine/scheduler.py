"""Who gets a slot, and what each slot does next. Pure bookkeeping: no threads, no device."""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gemma_server.engine.estimates import Rates
from gemma_server.engine.plan import Chunk, Plan, Row, StepResult
from gemma_server.engine.request import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Handle,
    PromptLogprobs,
    Request,
    Stamps,
    Token,
)
from gemma_server.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EmptyPrompt,
    GenerationFailed,
    QueueFull,
    RequestError,
)


@dataclass(frozen=True)
class Limits:
    """How much the scheduler takes on."""

    slots: int
    context_length: int  # tokens of prompt and answer together
    chunk: int  # most prompt tokens in one plan
    max_queue: int  # most requests waiting for a slot
    max_queue_tokens: int  # most prompt tokens in these
    steps: int = 1  # tokens that a row draws in one plan while no prompt is being read

    @property
    def longest_prompt(self) -> int:
        """A prompt must leave room for one token of answer."""
        return self.context_length - 1


@dataclass(eq=False)
class _Task:
    """A request from submission to its terminal event.

    Plans run ahead of their results. What the device was asked for: `prefilled` of the prompt,
    then `planned` tokens of answer. What came back and was wanted: `drawn`, at most `longest`.
    """

    id: int
    handle: Handle
    longest: int
    deadline: float | None
    prefilled: int = 0
    planned: int = 0
    drawn: int = 0

    @property
    def request(self) -> Request:
        return self.handle.request

    @property
    def reading(self) -> bool:
        """Some of its prompt is in no plan yet."""
        return self.prefilled < len(self.request.token_ids)

    @property
    def decoding(self) -> bool:
        """It has a last token on the device, or will have, and is not yet sure to end."""
        return 0 < self.planned < self.longest

    @property
    def position(self) -> int:
        """Where that last token goes: right behind everything the cache then holds."""
        return len(self.request.token_ids) + self.planned - 1


class Scheduler:
    """First come, first served over a fixed number of slots, with a bounded waiting line.

    Plans may be made while the results of earlier ones are not in yet. Each is to be dispatched,
    and committed once, both in the order in which they were made. A slot that is free again may be
    in such an earlier plan: the device comes to its new use later, and the old result is ignored.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._ids = itertools.count()
        self._waiting: deque[_Task] = deque()
        self._slots: list[_Task | None] = [None] * limits.slots
        self._rates = Rates()
        self._planned_at: deque[float] = deque()  # of plans that are not committed
        self._committed_at = -math.inf  # the last one
        self.tokens_drawn = 0  # for requests, surplus apart

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Slots at work."""
        return sum(task is not None for task in self._slots)

    def submit(self, request: Request, deadline: float | None = None) -> Handle:
        """Put a request at the end of the waiting line; `deadline` is by the scheduler's clock.

        Raises:
            EmptyPrompt, ContextLengthExceeded: no prompt can be like that.
            QueueFull: there is no room in the queue.
            DeadlineExceeded: the first token cannot come in time, as requests go now.
        """
        self.check_prompt(len(request.token_ids))
        self._refuse_when_full(len(request.token_ids))
        self._refuse_when_late(len(request.token_ids), deadline)
        handle = Handle(request, Stamps(submitted=self._clock()))
        room = self.limits.context_length - len(request.token_ids)
        longest = min(request.max_tokens, room)
        self._waiting.append(_Task(next(self._ids), handle, longest, deadline))
        return handle

    def check_prompt(self, tokens: int) -> None:
        """Raise `PromptRefused` when no prompt of so many tokens can ever be taken."""
        if tokens == 0:
            raise EmptyPrompt
        if tokens > self.limits.longest_prompt:
            raise ContextLengthExceeded(tokens, self.limits.longest_prompt)

    def plan(self) -> Plan | None:
        """Hand out free slots, then say what the device does next; None when all is planned."""
        self._admit()
        decoding = [
            (slot, task)
            for slot, task in enumerate(self._slots)
            if task is not None and task.decoding
        ]
        chunk = self._next_chunk()
        if chunk is None and not decoding:
            return None
        self._planned_at.append(self._clock())
        # Between two chunks of a prompt the others draw one token: its first would wait for more.
        steps = 1 if chunk is not None else self.limits.steps
        return Plan(chunk, tuple(_next_row(slot, task, steps) for slot, task in decoding), steps)

    def commit(self, plan: Plan, result: StepResult) -> None:
        """Turn what a plan drew into events. Tasks that have ended get none of it."""
        now = self._clock()
        began = max(self._planned_at.popleft(), self._committed_at)
        self._committed_at = now
        if plan.prefill is not None:
            if len(plan.prefill.token_ids) == self.limits.chunk:
                self._rates.chunk_read(now - began)
            self._take_chunk(plan.prefill, result)
        for row, tokens in zip(plan.decode, result.decode, strict=True):
            self._take(row, tokens)

    def cancel(self, handle: Handle) -> None:
        """End a request early, wherever it is; a request that has ended stays as it is."""
        for slot, task in enumerate(self._slots):
            if task is not None and task.handle is handle:
                self._end(slot, task, Cancelled())
                return
        for task in self._waiting:
            if task.handle is handle:
                self._waiting.remove(task)
                self._terminate(task, Cancelled())
                return

    def fail_all(self, error: RequestError) -> None:
        """End every request, waiting ones too, with the same error."""
        for slot, task in enumerate(self._slots):
            if task is not None:
                self._end(slot, task, Failed(error))
        while self._waiting:
            self._terminate(self._waiting.popleft(), Failed(error))

    def _refuse_when_full(self, prompt_tokens: int) -> None:
        limits = self.limits
        free = limits.slots - self.active
        if self.waiting < free:
            return  # it gets a slot with the next plan
        line = list(self._waiting)[free:]
        line_tokens = sum(len(task.request.token_ids) for task in line)
        rounds = (len(line) + 1) / limits.slots
        retry_after_s = min(120, max(1, math.ceil(rounds * self._rates.held_s)))
        if len(line) >= limits.max_queue:
            raise QueueFull(
                "requests",
                queued=len(line),
                more=1,
                limit=limits.max_queue,
                retry_after_s=retry_after_s,
            )
        if line_tokens + prompt_tokens > limits.max_queue_tokens:
            raise QueueFull(
                "tokens",
                queued=line_tokens,
                more=prompt_tokens,
                limit=limits.max_queue_tokens,
                retry_after_s=retry_after_s,
            )

    def _refuse_when_late(self, prompt_tokens: int, deadline: float | None) -> None:
        """Prompts are read one after the other; how long answers get, nobody knows."""
        if deadline is None:
            return
        unread = [len(task.request.token_ids) for task in self._waiting]
        unread += [len(task.request.token_ids) - task.prefilled for task in self._slots if task]
        chunks = sum(tokens // self.limits.chunk for tokens in (*unread, prompt_tokens))
        soonest, left = self._rates.reading_s(chunks), max(0.0, deadline - self._clock())
        if soonest > left:
            raise DeadlineExceeded(
                f"the first token would take {soonest:.1f} s or more, and {left:.1f} s are left"
            )

    def _admit(self) -> None:
        for slot, task in enumerate(self._slots):
            if task is None and (admitted := self._next_in_line()) is not None:
                admitted.handle.stamps.admitted = self._clock()
                self._slots[slot] = admitted

    def _next_in_line(self) -> _Task | None:
        """The first who still has time; those in front of it end."""
        while self._waiting:
            task = self._waiting.popleft()
            if task.deadline is None or task.deadline > self._clock():
                return task
            late = DeadlineExceeded("the time allowed was over before there was a slot")
            self._terminate(task, Failed(late))
        return None

    def _next_chunk(self) -> Chunk | None:
        """The next piece of the oldest prompt that is not yet planned to its end."""
        reading = [
            (task.id, slot, task)
            for slot, task in enumerate(self._slots)
            if task is not None and task.reading
        ]
        if not reading:
            return None
        _, slot, task = min(reading)
        chunk = _chunk(slot, task, self.limits.chunk)
        task.prefilled += len(chunk.token_ids)
        if not task.reading:
            task.planned = 1
        return chunk

    def _owner(self, part: Chunk | Row) -> _Task | None:
        """The task that the part was planned for, unless it has ended."""
        task = self._slots[part.slot]
        return task if task is not None and task.id == part.task else None

    def _take_chunk(self, chunk: Chunk, result: StepResult) -> None:
        task = self._owner(chunk)
        if task is not None and result.prompt:
            task.handle.deliver(PromptLogprobs(result.prompt))
        if result.prefill is not None:
            self._take(chunk, (result.prefill,))

    def _take(self, part: Chunk | Row, tokens: tuple[Token, ...]) -> None:
        """Give a task its tokens until it ends; what is behind that is surplus."""
        for token in tokens:
            task = self._owner(part)
            if task is None:
                return
            self._take_token(part.slot, task, token)

    def _take_token(self, slot: int, task: _Task, token: Token) -> None:
        if task.drawn == 0:
            task.handle.stamps.first_token = self._clock()
        if task.longest > 0:  # else the prompt was all that was wanted
            self.tokens_drawn += 1
            task.drawn += 1
        if token.id < 0:
            error = GenerationFailed("the model computed no finite number for this prompt")
            self._end(slot, task, Failed(error))
        elif task.longest == 0:
            self._end(slot, task, Finished("length", 0))
        elif token.id in task.request.stop_ids:
            self._end(slot, task, Finished("stop", task.drawn, token))
        else:
            task.handle.deliver(token)
            if task.drawn == task.longest:
                self._end(slot, task, Finished("length", task.drawn))

    def _end(self, slot: int, task: _Task, event: Event) -> None:
        self._slots[slot] = None
        self._terminate(task, event)
        self._rates.ended(task.handle.stamps.timings())

    def _terminate(self, task: _Task, event: Event) -> None:
        task.handle.stamps.ended = self._clock()
        task.handle.deliver(event)


def _chunk(slot: int, task: _Task, most: int) -> Chunk:
    """The next tokens of the task's prompt, at most so many."""
    request, offset = task.request, task.prefilled
    end = offset + most
    token_ids = request.token_ids[offset:end]
    scored = request.token_ids[offset + 1 : end + 1] if request.prompt_logprobs else ()
    if end < len(request.token_ids):
        return Chunk(task.id, slot, offset, token_ids, None, request.top_logprobs, scored=scored)
    return Chunk(
        task.id,
        slot,
        offset,
        token_ids,
        request.sampling,
        request.top_logprobs,
        tuple(request.stop_ids) if request.min_tokens > 0 else (),
        request.min_tokens,
        scored,
    )


def _next_row(slot: int, task: _Task, steps: int) -> Row:
    request = task.request
    banned = bool(request.stop_ids) and task.planned < request.min_tokens
    row = Row(task.id, slot, task.position, request.sampling, request.top_logprobs, banned)
    task.planned += steps
    return row
