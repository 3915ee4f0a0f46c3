"""A request in the scheduler: how many of its tokens are scheduled, and how many are known."""

from dataclasses import dataclass, field

from gemma_server.engine.plan import Chunk, Row
from gemma_server.engine.prompt_cache import Text, worth_waiting
from gemma_server.engine.request import Handle, Request


@dataclass(eq=False)
class Sequence:
    """A request from submission to its terminal event.

    Plans may run ahead of their results. Of the prompt, `prefilled` tokens are scheduled, or were
    in the cache. Of the answer, some tokens are known and wanted, and `in_flight` more are
    scheduled in plans whose results are not known yet. It has at most `longest` tokens.
    """

    id: int
    handle: Handle
    longest: int
    deadline: float | None
    caller: str = ""  # whose request it is; slots and places in the queue are shared among callers
    turn: int = 0  # of reading, the last that it had
    prefilled: int = 0
    in_flight: int = 0
    answer: list[int] = field(default_factory=list)  # the confirmed ids

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.handle.request

    @property
    def prefilling(self) -> bool:
        """Some of its prompt is not scheduled yet."""
        return self.unread > 0

    @property
    def unread(self) -> int:
        """Tokens of its prompt that are not scheduled yet."""
        return len(self.request.token_ids) - self.prefilled

    @property
    def reuses(self) -> bool:
        """It may begin where another text left off. Logprobs of a prompt come of reading it."""
        return self.request.cache_prompt and not self.request.prompt_logprobs

    @property
    def begun(self) -> bool:
        """Some of its prompt is scheduled to be read."""
        return self.prefilled > self.handle.cached_tokens

    def waits_for(self, other: "Sequence") -> bool:
        """Whether to begin when the other, which came first, has read what both begin with."""
        if self.begun or other.id >= self.id or not (self.reuses and other.request.cache_prompt):
            return False
        return worth_waiting(self.prompt, self.prefilled, other.prompt, other.prefilled)

    @property
    def decoding(self) -> bool:
        """Its first token is scheduled, and fewer than `longest` tokens are. What may follow a
        token under a constraint is known only when the token is."""
        if self.request.constraint is not None and self.in_flight > 0:
            return False
        return 0 < self._scheduled < self.longest

    @property
    def position(self) -> int:
        """Where its last scheduled token is fed: the first free position of the cache by then."""
        return len(self.request.token_ids) + self._scheduled - 1

    @property
    def confirmed(self) -> int:
        """How many tokens of its answer are known."""
        return len(self.answer)

    @property
    def _scheduled(self) -> int:
        return self.confirmed + self.in_flight

    @property
    def prompt(self) -> Text:
        """Its prompt, as the cache knows it."""
        return Text(self.request.token_ids, self.request.cache_salt)

    @property
    def cached(self) -> Text:
        """The text whose keys and values its slot has once the plans made so far have run: the last
        token of the answer is not fed yet."""
        ids = self.request.token_ids[: self.prefilled] + tuple(self.answer[:-1])
        return Text(ids, self.request.cache_salt)

    def next_chunk(self, slot: int, most: int) -> Chunk:
        """Schedule at most `most` further tokens of the prompt; with the prompt's last token, the
        answer's first too."""
        request, offset = self.request, self.prefilled
        end = min(offset + most, len(request.token_ids))
        self.prefilled = end
        token_ids = request.token_ids[offset:end]
        scored = request.token_ids[offset + 1 : end + 1] if request.prompt_logprobs else ()
        if self.prefilling:
            return Chunk(
                self.id, slot, offset, token_ids, None, request.top_logprobs, scored=scored
            )
        self.in_flight += 1
        return Chunk(
            self.id,
            slot,
            offset,
            token_ids,
            request.sampling,
            request.top_logprobs,
            tuple(request.stop_ids) if request.min_tokens > 0 else (),
            request.min_tokens,
            scored,
            self._mask,
        )

    def next_row(self, slot: int, steps: int) -> Row:
        """Schedule `steps` more tokens of the answer; under a constraint, one."""
        request = self.request
        steps = steps if request.constraint is None else 1
        banned = bool(request.stop_ids) and self._scheduled < request.min_tokens
        position, self.in_flight = self.position, self.in_flight + steps
        how, top = request.sampling, request.top_logprobs
        return Row(self.id, slot, position, how, top, banned, steps, self._mask)

    @property
    def _mask(self) -> bytes | None:
        constraint = self.request.constraint
        return None if constraint is None else constraint.mask

    def confirm(self, token: int) -> None:
        """One of the tokens in flight is known, and wanted."""
        self.in_flight -= 1
        self.answer.append(token)
