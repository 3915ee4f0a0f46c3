"""A request in the scheduler: how many of its tokens are scheduled, and how many are known."""

from dataclasses import dataclass

from gemma_server.engine.plan import Chunk, Row
from gemma_server.engine.request import Handle, Request


@dataclass(eq=False)
class Sequence:
    """A request from submission to its terminal event.

    Plans may run ahead of their results. Of the prompt, `prefilled` tokens are scheduled. Of the
    answer, `confirmed` tokens are known and wanted, and `in_flight` more are scheduled in plans
    whose results are not known yet. The answer has at most `longest` tokens.
    """

    id: int
    handle: Handle
    longest: int
    deadline: float | None
    caller: str = ""  # whose request it is; slots and places in the queue are shared among callers
    prefilled: int = 0
    confirmed: int = 0
    in_flight: int = 0

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.handle.request

    @property
    def prefilling(self) -> bool:
        """Some of its prompt is not scheduled yet."""
        return self.prefilled < len(self.request.token_ids)

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
    def _scheduled(self) -> int:
        return self.confirmed + self.in_flight

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

    def confirm(self) -> None:
        """One of the tokens in flight is known, and wanted."""
        self.in_flight -= 1
        self.confirmed += 1
