"""A request in the scheduler: how many of its tokens are scheduled, and how many are known."""

from collections import abc
from dataclasses import dataclass, field
from itertools import zip_longest

from gemma_server.engine.draft import Chance, Foreseen, Lookup
from gemma_server.engine.draft_model import Asked
from gemma_server.engine.plan import Chunk, Row
from gemma_server.engine.priority import Priority
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
    agreement: Chance  # of a draft model with its own, over all sequences
    caller: str = ""  # whose request it is; slots and places in the queue are shared among callers
    priority: Priority = "interactive"
    turn: int = 0  # of reading, the last that it had
    prefilled: int = 0
    in_flight: int = 0
    draft: tuple[Foreseen, ...] = ()  # of these, those that were only foreseen
    proposed: list[int] = field(default_factory=list)  # by a draft model, to follow the answer
    answer: list[int] = field(default_factory=list)  # the confirmed ids
    _lookup: Lookup | None = None
    _tried: Chance | None = None  # of the last draft's guesses

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
        token under a constraint is known only when the token is, and how many tokens a draft
        gives, when it is checked."""
        waits = self.request.constraint is not None or bool(self.draft)
        if waits and self.in_flight > 0:
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

    def next_row(self, slot: int, steps: int, draft: abc.Sequence[Foreseen] = ()) -> Row:
        """Schedule `steps` more tokens of the answer; one under a constraint, and one and as many
        as come true of a draft."""
        request = self.request
        ids = tuple(each.id for each in draft)
        masks = self._mask, *(each.mask for each in draft)
        steps = steps if request.constraint is None and not ids else 1
        banned = bool(request.stop_ids) and self._scheduled < request.min_tokens
        self.draft = tuple(draft)
        position, self.in_flight = self.position, self.in_flight + steps + len(ids)
        how, top = request.sampling, request.top_logprobs
        return Row(self.id, slot, position, how, top, banned, steps, ids, masks)

    def foresee(self, most: int) -> list[Foreseen]:
        """How its answer may go on behind the next token: drafts from its own text or of a draft
        model, and what a constraint forces."""
        room, self._tried = self._room(most), None
        if room <= 0:
            return []
        guess, constraint = self._guess(room), self.request.constraint
        if constraint is None:
            return guess
        found = constraint.foresee([each.id for each in guess], room)
        pairs = zip_longest(guess[: len(found)], found)
        return [
            Foreseen(token, each.chance if each is not None and each.id == token else 1.0, mask)
            for each, (token, mask) in pairs
        ]

    def to_ask(self, slot: int, most: int) -> Asked | None:
        """What to ask a draft model; None where its own text says more, or there is no room."""
        room = self._room(most)
        if room <= 0:
            return None
        looked_up = self._looked_up(room)
        if looked_up and looked_up[0].chance >= self.agreement.value:
            return None
        text = Text(self.request.token_ids + tuple(self.answer), self.request.cache_salt)
        request, prompt = self.request, len(self.request.token_ids)
        return Asked(self.id, slot, text, prompt, request.sampling, room, request.cache_prompt)

    def _room(self, most: int) -> int:
        """How many tokens may be foreseen."""
        return 0 if self.in_flight > 0 else min(most, self.longest - self._scheduled - 1)

    def _looked_up(self, most: int) -> list[Foreseen]:
        if self._lookup is None:
            self._lookup = Lookup(self.request.token_ids, self.longest)
            for token in self.answer:
                self._lookup.push(token)
        return self._lookup.propose(most)

    def _guess(self, most: int) -> list[Foreseen]:
        """Of what it could be, the likelier."""
        looked_up, proposed = self._looked_up(most), self.proposed[:most]
        self.proposed = []
        value = self.agreement.value
        if proposed and not (looked_up and looked_up[0].chance >= value):
            self._tried = self.agreement
            return [Foreseen(token, value) for token in proposed]
        self._tried = self._lookup.chance if self._lookup is not None else None
        return looked_up

    def checked(self, kept: int) -> None:
        """Of the last row's tokens so many were kept; the others were foreseen wrongly."""
        draft, self.draft = self.draft, ()
        came_true = draft[: kept - 1]
        self.in_flight -= len(draft) - len(came_true)
        self.handle.draft_tokens += len(draft)
        self.handle.accepted_tokens += len(came_true)
        if self._tried is not None:
            self._tried.learn(_guessed(came_true), _guessed(draft))

    @property
    def _mask(self) -> bytes | None:
        constraint = self.request.constraint
        return None if constraint is None else constraint.mask

    def confirm(self, token: int) -> None:
        """One of the tokens in flight is known, and wanted."""
        self.in_flight -= 1
        self.answer.append(token)
        if self._lookup is not None:
            self._lookup.push(token)


def _guessed(draft: abc.Sequence[Foreseen]) -> int:
    """How many are no certainty."""
    return sum(each.chance < 1 for each in draft)
