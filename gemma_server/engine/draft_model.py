"""Drafts of a smaller model, which reads what its slots' requests have, and goes on with them."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gemma_server.engine.estimates import ServiceEstimates
from gemma_server.engine.plan import Chunk, Plan, Row, Runner, StepResult
from gemma_server.engine.prompt_cache import Text, shared
from gemma_server.engine.request import SamplingParams

_READING_S = 0.05  # of reading, in a turn: the rows wait for it


class Asked(NamedTuple):
    """A text to go on with by `most` tokens, as its own model would sample them."""

    sequence: int
    slot: int
    text: Text  # its prompt, and all that is known of its answer
    prompt: int  # tokens
    sampling: SamplingParams
    most: int
    reuses: bool = True  # it may begin like the text before it in its slot


@dataclass
class _Slot:
    """What a slot has."""

    text: Text = field(default_factory=Text)
    sequence: int = -1
    has_options: bool = False  # those of this sequence: they come with a chunk


class DraftModel:
    """Runs a small model of the same vocabulary beside a large one, whose slots it has too.

    It samples with a request's own seed and options: where both models think alike, they draw the
    same token at any temperature. It reads a prompt in chunks, one in a turn; until then that
    request has no draft. Only the engine's thread may call it.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        slots: int,
        context_length: int,
        chunks: tuple[int, ...],
        rows: Sequence[int],
        vocab: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._context_length = context_length
        self._vocab = vocab  # of the large model
        self._chunks, self._counts = chunks, rows
        self._clock = clock
        self._slots = [_Slot() for _ in range(slots)]
        self._estimates = ServiceEstimates()

    def token_s(self, rows: int) -> float:
        """Seconds for one more token of so many texts; 0 if none was measured."""
        return self._estimates.step_s(self._padded(rows))

    def propose(self, asked: Sequence[Asked]) -> dict[int, list[int]]:
        """The tokens that each text may go on with, by its sequence; none for those that are still
        to be read."""
        read, unread = list[Asked](), list[Asked]()
        for each in asked:
            if self._takes(each):
                (read if self._slots[each.slot].has_options else unread).append(each)
        if unread:
            self._read(min(unread, key=self._left))
        return self._go_on(read)

    def _takes(self, each: Asked) -> bool:
        """Make the slot the sequence's, and say whether the text fits in."""
        slot, ids = self._slots[each.slot], each.text.ids
        kept = shared(slot.text, each.text)
        if slot.sequence != each.sequence:
            slot.sequence, slot.has_options = each.sequence, False
            kept = min(kept, each.prompt - 1) if each.reuses else 0
        slot.text = Text(ids[:kept], each.text.salt)
        return len(ids) + each.most <= self._context_length

    def _left(self, each: Asked) -> int:
        """Tokens of the text that its slot has not, the last one included."""
        return len(each.text.ids) - len(self._slots[each.slot].text.ids)

    def _read(self, each: Asked) -> None:
        """Read a chunk of the prompt; with its end come the options."""
        slot, ids = self._slots[each.slot], each.text.ids
        begin = len(slot.text.ids)
        end = min(begin + self._chunk_size(), each.prompt)
        slot.has_options = end == each.prompt
        how = each.sampling if slot.has_options else None
        seconds = self._run(Plan(Chunk(each.sequence, each.slot, begin, ids[begin:end], how), ()))[
            1
        ]
        if end - begin in self._chunks:
            self._estimates.chunk_read(end - begin, 0, seconds)
        slot.text = Text(ids[:end], each.text.salt)

    def _chunk_size(self) -> int:
        able = [size for size in self._chunks if self._estimates.chunk_s(size, 0) <= _READING_S]
        return max(able, default=self._chunks[0])

    def _go_on(self, asked: Sequence[Asked]) -> dict[int, list[int]]:
        """Feed what is left of each text, then each token that was sampled."""
        found: dict[int, list[int]] = {}
        sampled = self._feed(asked)
        for count in itertools.count(1):
            for sequence, token in sampled.items():
                if 0 <= token < self._vocab:  # below 0: its logits were not finite
                    found.setdefault(sequence, []).append(token)
            going = [
                each for each in asked if count == len(found.get(each.sequence, ())) < each.most
            ]
            if not going:
                break
            sampled = self._step([(each, self._next_row(each, count)) for each in going])
        for each in asked:
            if drafted := found.get(each.sequence):
                ids = (*each.text.ids, *drafted[:-1])
                self._slots[each.slot].text = Text(ids, each.text.salt)
        return found

    def _feed(self, asked: Sequence[Asked]) -> dict[int, int]:
        """Feed what is left of the texts, as much as there is a program for. What is sampled behind
        those that are whole then, by their sequences."""
        rows, room = list[tuple[Asked, Row]](), max(self._counts)
        for each in asked:
            slot, text = self._slots[each.slot], each.text
            begin = len(slot.text.ids)
            if ids := text.ids[begin : begin + room]:
                rows.append((each, self._row(each, begin, ids)))
                slot.text = Text(text.ids[: begin + len(ids)], text.salt)
                room -= len(ids)
        sampled = self._step(rows) if rows else {}
        return {each.sequence: sampled[each.sequence] for each, _ in rows if not self._left(each)}

    def _row(self, each: Asked, position: int, ids: tuple[int, ...]) -> Row:
        """Feeds tokens of the text."""
        return Row(
            each.sequence,
            each.slot,
            position,
            each.sampling,
            draft=ids[1:],
            masks=(None,) * len(ids),
            token=ids[0],
        )

    def _next_row(self, each: Asked, count: int) -> Row:
        """Feeds the last of so many tokens that were sampled."""
        position = len(each.text.ids) + count - 1
        return Row(each.sequence, each.slot, position, each.sampling)

    def _step(self, rows: Sequence[tuple[Asked, Row]]) -> dict[int, int]:
        """What is sampled behind each row's last token, by its sequence."""
        plan = Plan(None, tuple(row for _, row in rows))
        result, seconds = self._run(plan)
        self._estimates.stepped(self._padded(plan.fed), seconds)
        last = (tokens[-1].id for tokens in result.decode)
        return {each.sequence: token for (each, _), token in zip(rows, last, strict=True)}

    def _run(self, plan: Plan) -> tuple[StepResult, float]:
        """What the plan sampled, and its seconds."""
        began = self._clock()
        return self._runner.dispatch(plan).read(), self._clock() - began

    def _padded(self, rows: int) -> int:
        return next((count for count in self._counts if count >= rows), rows)
