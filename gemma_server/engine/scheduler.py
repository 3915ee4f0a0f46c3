"""Which request gets a slot, and what each slot does next. No threads, no device."""

import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gemma_server.engine.draft import Chance, Foreseen, allot, worth_asking
from gemma_server.engine.draft_model import Asked
from gemma_server.engine.estimates import ServiceEstimates
from gemma_server.engine.plan import Chunk, Copy, Plan, Row, StepResult
from gemma_server.engine.priority import Priority
from gemma_server.engine.prompt_cache import PromptCache, Text
from gemma_server.engine.queue import LONGEST_WAIT_S, FairQueue, Promises, Room, rounds_s
from gemma_server.engine.request import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Handle,
    PromptLogprobs,
    Request,
    Timestamps,
    Token,
)
from gemma_server.engine.sequence import Sequence
from gemma_server.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EmptyPrompt,
    GenerationFailed,
    QueueFull,
    RequestError,
)

# Of a draft model with the large one, until some were tried. That it never agrees is unlearned in
# hundreds of steps: until then it costs nothing.
_AGREEMENT = (0.7, 0.1, 0.002)
_GAP_STEPS = 2.5  # steps without a chunk: a gap that is not felt as one
_FILLED = 0.75  # of a chunk, at least, unless it is one of the smallest


@dataclass(frozen=True)
class Limits:
    """How much the scheduler accepts."""

    slots: int
    context_length: int  # tokens of prompt and answer together
    chunks: tuple[int, ...]  # the sizes of chunks in prompt tokens, the largest last
    max_queue: int  # most requests waiting for a slot
    max_queue_tokens: int  # most prompt tokens in these
    steps: int = 1  # tokens that a row samples in one plan while no prompt is being read
    kept: int = 0  # further slots of the cache, for texts that have ended
    rows: tuple[int, ...] = ()  # how many there are programs for, if rows may be drafts
    max_draft: int = 0  # tokens of one answer that are foreseen at a time
    degrade_at: float | None = None  # share of the queue from which answers are cut; None: never
    degrade_to: int = 64  # tokens of such an answer
    gap_s: float | None = None  # wanted between two tokens while a prompt is read; None: whatever

    @property
    def longest_prompt(self) -> int:
        """The most tokens of a prompt: it must leave room for one token of answer."""
        return self.context_length - 1


class Scheduler:
    """Serves callers in turn over a fixed number of slots, with a bounded queue; a caller's own
    requests are served in their order.

    A plan may be made before the results of earlier plans are known. Each must be dispatched and
    committed once, in the order of planning. A slot can be freed while an earlier plan still uses
    it: the device reaches its new use later, and the old result is ignored.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._ids = itertools.count()
        self._queue = FairQueue()
        self._room = Room(limits.max_queue, limits.max_queue_tokens)
        self._promises = Promises(self._room, clock)
        self._slots: list[Sequence | None] = [None] * limits.slots
        self.prompt_cache = PromptCache(limits.slots, limits.kept)
        self._copies: list[Copy] = []  # to be made in the next plan
        self._turns = itertools.count(1)  # of reading prompts
        self._estimates = ServiceEstimates()
        self._agreement = Chance(*_AGREEMENT)
        self._planned_at: deque[float] = deque()  # of plans that are not committed
        self._committed_at = -math.inf  # the last one
        self.tokens_sampled = 0  # for requests; surplus does not count

    @property
    def queued(self) -> int:
        """Requests without a slot."""
        return len(self._queue)

    @property
    def active(self) -> int:
        """Slots in use."""
        return sum(sequence is not None for sequence in self._slots)

    def submit(
        self,
        requests: Iterable[Request],
        deadline: float | None = None,
        caller: str = "",
        *,
        returns: bool = True,
        priority: Priority = "interactive",
    ) -> list[Handle]:
        """Put all of the requests into the queue, or none; `deadline` is on the scheduler's clock.
        `returns`: the caller could come back by this name.

        Raises:
            EmptyPrompt, ContextLengthExceeded: such a prompt can never be accepted.
            QueueFull: there is no room in the queue. Until a caller who returns comes back at the
                time that the error says, nobody else gets the places that it needs.
            DeadlineExceeded: by the current estimates the first token cannot come in time.
        """
        requests = list(requests)
        prompts = [len(request.token_ids) for request in requests]
        for tokens in prompts:
            self.check_prompt(tokens)
        self._refuse_when_full(prompts, caller, returns=returns)
        sequences = [self._sequence(request, deadline, caller, priority) for request in requests]
        if self._is_crowded():
            self._degrade(sequences)
        self._refuse_when_late(sequences, deadline, priority)
        self._promises.taken_up(caller)
        for sequence in sequences:
            self._queue.append(sequence)
        return [sequence.handle for sequence in sequences]

    def _sequence(
        self, request: Request, deadline: float | None, caller: str, priority: Priority
    ) -> Sequence:
        handle = Handle(request, Timestamps(submitted=self._clock()))
        room = self.limits.context_length - len(request.token_ids)
        longest = min(request.max_new_tokens, room)
        sequence = Sequence(
            next(self._ids), handle, longest, deadline, self._agreement, caller, priority
        )
        if deadline is not None and sequence.reuses:
            # As it looks now; what there is when it gets a slot decides.
            sequence.prefilled = self.prompt_cache.longest(sequence.prompt, self._running())
        return sequence

    def _is_crowded(self) -> bool:
        """Whether new answers are to be cut short."""
        share = self.limits.degrade_at
        return share is not None and self._taken().share_of(self._room) >= share

    def _degrade(self, sequences: list[Sequence]) -> None:
        """Cut answers that could get long, before they have begun."""
        most = self.limits.degrade_to
        for sequence in sequences:
            if sequence.longest > most:
                sequence.longest = sequence.handle.degraded_to = most

    def check_prompt(self, tokens: int) -> None:
        """Raise `PromptRefused` when a prompt of so many tokens can never be accepted."""
        if tokens == 0:
            raise EmptyPrompt
        if tokens > self.limits.longest_prompt:
            raise ContextLengthExceeded(tokens, self.limits.longest_prompt)

    def plan(self) -> Plan | None:
        """Hand out free slots, then say what the device does next; None when all is planned."""
        self._admit()
        decoding = self._decoding()
        chunk = self._next_chunk()
        if chunk is None and not decoding:
            return None
        self._planned_at.append(self._clock())
        # While a prompt is read, rows sample one token a plan: more would delay its next chunk.
        steps = 1 if chunk is not None else self.limits.steps
        copies, self._copies = tuple(self._copies), []
        drafts = self._drafts([sequence for _, sequence in decoding])
        rows = tuple(
            sequence.next_row(slot, steps, draft)
            for (slot, sequence), draft in zip(decoding, drafts, strict=True)
        )
        return Plan(chunk, rows, copies)

    def commit(self, plan: Plan, result: StepResult) -> None:
        """Turn what a plan sampled into events. Sequences that have ended get none."""
        now = self._clock()
        began = max(self._planned_at.popleft(), self._committed_at)
        self._committed_at = now
        self._measure(plan, now - began)
        if plan.prefill is not None:
            self._take_chunk(plan.prefill, result)
        for row, tokens in zip(plan.decode, result.decode, strict=True):
            self._take_row(row, tokens)

    def to_ask(self, token_s: Callable[[int], float]) -> list[Asked]:
        """What a draft model should go on with, if it takes `token_s` for one token of so many
        texts: as many tokens as make answers come sooner."""
        decoding = self._decoding()
        spare, rows = self._spare_rows(len(decoding)), len(decoding)
        most = self.limits.max_draft
        if spare <= 0:
            return []
        each = [sequence.to_ask(slot, most) for slot, sequence in decoding]
        able = [asked for asked in each if asked is not None][:spare]
        if not able:
            return []
        count = worth_asking(
            [self._agreement.value] * len(able),
            rows,
            min(most, spare // len(able)),
            lambda count: self._estimates.step_s(self._padded(count)),
            token_s(len(able)),
        )
        if count == 0:
            self._agreement.learn(0, 0)
            return []
        return [asked._replace(most=min(count, asked.most)) for asked in able]

    def foreseen(self, proposed: Mapping[int, list[int]]) -> None:
        """How answers may go on, by the ids of their sequences."""
        for _, sequence in self._decoding():
            sequence.proposed = proposed.get(sequence.id, [])

    def _decoding(self) -> list[tuple[int, Sequence]]:
        """The sequences that may sample their next token, and their slots."""
        slots = enumerate(self._slots)
        return [(slot, each) for slot, each in slots if each is not None and each.decoding]

    def _spare_rows(self, rows: int) -> int:
        return max(self.limits.rows, default=0) - rows

    def _drafts(self, decoding: list[Sequence]) -> list[list[Foreseen]]:
        """What to feed behind each row's token."""
        most = min(self.limits.max_draft, self._spare_rows(len(decoding)))
        if most <= 0 or not decoding:
            return [[] for _ in decoding]
        drafts = [sequence.foresee(most) for sequence in decoding]
        allotted = allot(drafts, self.limits.rows, self._estimates.measured_s)
        return [draft[:tried] for draft, tried in zip(drafts, allotted, strict=True)]

    def _measure(self, plan: Plan, seconds: float) -> None:
        chunk, rows = plan.prefill, self._padded(plan.fed)
        if plan.copies:
            return
        if chunk is None:
            self._estimates.stepped(rows, seconds / plan.steps)
        elif len(chunk.token_ids) in self.limits.chunks:
            self._estimates.chunk_read(len(chunk.token_ids), rows, seconds)

    def cancel(self, handle: Handle) -> None:
        """End a request early, wherever it is; a request that has ended stays as it is."""
        if handle.timestamps.ended is not None:
            return  # else the whole queue would be looked through
        for slot, sequence in enumerate(self._slots):
            if sequence is not None and sequence.handle is handle:
                self._end(slot, sequence, Cancelled())
                return
        for sequence in self._queue:
            if sequence.handle is handle:
                self._queue.remove(sequence)
                self._terminate(sequence, Cancelled())
                return

    def fail_all(self, error: RequestError) -> None:
        """End every request, queued ones too, with the same error."""
        for slot, sequence in enumerate(self._slots):
            if sequence is not None:
                self._end(slot, sequence, Failed(error))
        for sequence in list(self._queue):
            self._queue.remove(sequence)
            self._terminate(sequence, Failed(error))

    def _refuse_when_full(self, prompts: list[int], caller: str, *, returns: bool) -> None:
        limits, free = self.limits, self.limits.slots - self.active
        more = prompts[max(0, free - self.queued) :]
        if not more:
            return
        taken = self._taken()
        wanted = Room(len(more), sum(more))
        then = taken + self._promises.before(caller) + wanted
        if then.fits(self._room):
            return
        slots, held_s = limits.slots, self._estimates.held_s
        if returns:
            wait_s = self._promises.make(caller, wanted, slots=slots, held_s=held_s)
        else:
            wait_s = rounds_s(then.places, slots=slots, held_s=held_s)
        by_places = then.places > limits.max_queue
        raise QueueFull(
            "requests" if by_places else "tokens",
            queued=taken.places if by_places else taken.tokens,
            more=wanted.places if by_places else wanted.tokens,
            limit=limits.max_queue if by_places else limits.max_queue_tokens,
            retry_after_s=max(1, math.ceil(min(wait_s, LONGEST_WAIT_S))),
        )

    def _taken(self) -> Room:
        """What waits in the queue, but for what gets a slot with the next plan."""
        line = list(self._queue)[self.limits.slots - self.active :]
        return Room(len(line), sum(len(sequence.request.token_ids) for sequence in line))

    def _refuse_when_late(
        self, sequences: list[Sequence], deadline: float | None, priority: Priority
    ) -> None:
        """Counts prompts alone, read one after the other: the length of answers is unknown. Of the
        queue those of the same class count: of the other, none need go first."""
        if deadline is None:
            return
        ahead = (sequence for sequence in (*self._queue.of(priority), *self._slots) if sequence)
        unread = sum(sequence.unread for sequence in (*ahead, *sequences))
        soonest, left = self._estimates.prefill_s(unread), max(0.0, deadline - self._clock())
        if soonest > left:
            raise DeadlineExceeded(
                f"the first token would take {soonest:.1f} s or more, and {left:.1f} s are left"
            )

    def _admit(self) -> None:
        for _ in range(self._slots.count(None)):
            if (sequence := self._next_in_line()) is None:
                return
            sequence.handle.timestamps.admitted = self._clock()
            self._slots[self._place(sequence)] = sequence

    def _place(self, sequence: Sequence) -> int:
        """The slot for a sequence, which begins with what the slot has of its prompt by then."""
        free = [slot for slot, user in enumerate(self._slots) if user is None]
        placed = self.prompt_cache.place(
            sequence.prompt, free, self._running(), reuse=sequence.reuses
        )
        self._copies += placed.copies
        sequence.prefilled = sequence.handle.cached_tokens = placed.cached
        sequence.turn = next(self._turns)
        return placed.slot

    def _catch_up(self, slot: int, sequence: Sequence) -> None:
        if not sequence.reuses or sequence.begun:
            return
        cached, running = sequence.prefilled, self._running()
        copy = self.prompt_cache.catch_up(slot, sequence.prompt, cached, running)
        if copy is not None:
            self._copies.append(copy)
            sequence.prefilled = sequence.handle.cached_tokens = copy.length

    def _running(self) -> dict[int, Text]:
        """What the slots in use have, of those whose texts others may use."""
        users = ((slot, sequence) for slot, sequence in enumerate(self._slots) if sequence)
        return {slot: each.cached for slot, each in users if each.request.cache_prompt}

    def _next_in_line(self) -> Sequence | None:
        """The next sequence whose deadline has not passed; those before it end."""
        while self._queue:
            sequence = self._queue.next(Counter(slot.caller for slot in self._slots if slot))
            if sequence.deadline is None or sequence.deadline > self._clock():
                return sequence
            late = DeadlineExceeded("the time allowed was over before there was a slot")
            self._terminate(sequence, Failed(late))
        return None

    def _next_chunk(self) -> Chunk | None:
        """The next chunk of a prompt that is not fully scheduled. They take turns, so that a short
        one does not wait for the end of a long one, nor the other way round."""
        prefilling = [
            (sequence.turn, slot, sequence)
            for slot, sequence in enumerate(self._slots)
            if sequence is not None and sequence.prefilling
        ]
        others = [sequence for _, _, sequence in prefilling]
        able = [each for each in prefilling if not any(each[2].waits_for(o) for o in others)]
        if not able:
            return None
        _, slot, sequence = min(able)
        self._catch_up(slot, sequence)
        sequence.turn = next(self._turns)
        return sequence.next_chunk(slot, self._chunk_size(sequence.unread))

    def _chunk_size(self, unread: int) -> int:
        """The most tokens for the next chunk. Where gaps count, it is short enough for the rows
        beside it, and is filled for the most part: padding takes as long as tokens."""
        sizes = self.limits.chunks
        if self.limits.gap_s is None:
            return sizes[-1]
        rows = self._padded(sum(s is not None and s.decoding for s in self._slots))
        gap_s = max(self.limits.gap_s, _GAP_STEPS * self._estimates.step_s(rows))
        most = [s for s in sizes if rows == 0 or self._estimates.chunk_s(s, rows) <= gap_s]
        fitting = [size for size in most if size * _FILLED <= unread]
        return max(fitting, default=sizes[0])

    def _owner(self, part: Chunk | Row) -> Sequence | None:
        """The sequence that the part belongs to, unless it has ended."""
        sequence = self._slots[part.slot]
        return sequence if sequence is not None and sequence.id == part.sequence else None

    def _take_chunk(self, chunk: Chunk, result: StepResult) -> None:
        sequence = self._owner(chunk)
        if sequence is not None and result.prompt:
            sequence.handle.deliver(PromptLogprobs(result.prompt))
        if result.prefill is not None:
            self._take(chunk, (result.prefill,))

    def _padded(self, rows: int) -> int:
        """How many rows the device computes for so many."""
        return next((count for count in self.limits.rows if count >= rows), rows)

    def _take_row(self, row: Row, tokens: tuple[Token, ...]) -> None:
        """Take what was sampled behind what is right, up to where the draft is wrong."""
        sequence, draft = self._owner(row), [*row.draft, None]
        kept = next(i + 1 for i, (t, d) in enumerate(zip(tokens, draft, strict=False)) if t.id != d)
        if sequence is not None:
            sequence.checked(kept)
        self._take(row, tokens[:kept] if row.draft else tokens)

    def _take(self, part: Chunk | Row, tokens: tuple[Token, ...]) -> None:
        """Give a sequence its tokens until it ends; later ones are surplus."""
        for token in tokens:
            sequence = self._owner(part)
            if sequence is None:
                return
            self._take_token(part.slot, sequence, token)

    def _take_token(self, slot: int, sequence: Sequence, token: Token) -> None:
        if sequence.confirmed == 0:
            sequence.handle.timestamps.first_token = self._clock()
        if sequence.longest > 0:  # else the prompt was all that was wanted
            self.tokens_sampled += 1
            sequence.confirm(token.id)
        if token.id < 0:
            error = GenerationFailed("the model computed no finite number for this prompt")
            self._end(slot, sequence, Failed(error))
        elif sequence.longest == 0:
            self._end(slot, sequence, Finished("length", 0))
        elif token.id in sequence.request.stop_ids:
            self._end(slot, sequence, Finished("stop", sequence.confirmed, token))
        else:
            sequence.handle.deliver(token)
            self._go_on(slot, sequence, token)

    def _go_on(self, slot: int, sequence: Sequence, token: Token) -> None:
        """End the sequence if this was its last token."""
        constraint = sequence.request.constraint
        if constraint is not None:
            try:
                constraint.take(token.id)
            except RequestError as error:
                self._end(slot, sequence, Failed(error))
                return
            if constraint.is_complete:
                self._end(slot, sequence, Finished("stop", sequence.confirmed))
                return
        if sequence.confirmed == sequence.longest:
            self._end(slot, sequence, Finished("length", sequence.confirmed))

    def _end(self, slot: int, sequence: Sequence, event: Event) -> None:
        self._slots[slot] = None
        if sequence.request.cache_prompt and not isinstance(event, Failed):
            self.prompt_cache.leave(slot, sequence.cached)
        self._terminate(sequence, event)
        self._estimates.ended(sequence.handle.timestamps.timings())

    def _terminate(self, sequence: Sequence, event: Event) -> None:
        sequence.handle.timestamps.ended = self._clock()
        sequence.handle.sampled_tokens = sequence.confirmed
        sequence.handle.deliver(event)
