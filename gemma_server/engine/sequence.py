"""A request in the scheduler: how far it is, on the device and as far as results are in."""

from dataclasses import dataclass

from gemma_server.engine.plan import Chunk, Row
from gemma_server.engine.request import Handle, Request


@dataclass(eq=False)
class Sequence:
    """A request from submission to its terminal event.

    Plans may run ahead of their results. Of the prompt, `prefilled` tokens are in some plan. Of the
    answer, `confirmed` tokens are known and wanted, and `in_flight` more are scheduled, in plans
    whose results are not in; there will be at most `longest`.
    """

    id: int
    handle: Handle
    longest: int
    deadline: float | None
    prefilled: int = 0
    confirmed: int = 0
    in_flight: int = 0

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.handle.request

    @property
    def prefilling(self) -> bool:
        """Some of its prompt is in no plan yet."""
        return self.prefilled < len(self.request.token_ids)

    @property
    def decoding(self) -> bool:
        """It has a last token on the device, or will have, and is not yet sure to end."""
        return 0 < self._scheduled < self.longest

    @property
    def position(self) -> int:
        """Where that last token goes: right behind everything the cache then holds."""
        return len(self.request.token_ids) + self._scheduled - 1

    @property
    def _scheduled(self) -> int:
        return self.confirmed + self.in_flight

    def next_chunk(self, slot: int, most: int) -> Chunk:
        """Schedule the next tokens of the prompt, at most so many; behind the last of them, the
        answer's first token."""
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
        )

    def next_row(self, slot: int, steps: int) -> Row:
        """Schedule so many tokens more."""
        request = self.request
        banned = bool(request.stop_ids) and self._scheduled < request.min_tokens
        position, self.in_flight = self.position, self.in_flight + steps
        return Row(self.id, slot, position, request.sampling, request.top_logprobs, banned, steps)

    def confirm(self) -> None:
        """One of the tokens in flight is known, and wanted."""
        self.in_flight -= 1
        self.confirmed += 1
