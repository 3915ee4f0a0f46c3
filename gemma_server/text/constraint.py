"""Keeps answers to a grammar, token by token, with llguidance."""

import threading
from collections.abc import Collection, Iterable, Sequence
from enum import Enum, auto
from functools import cached_property
from typing import Any

import numpy as np

from gemma_server.errors import ConstraintFailed, GrammarRefused
from gemma_server.text.tokenizer import Tokenizer

# Of a stranger's grammar: states of its automaton, of half a kilobyte each, and the work to begin
# it and to take a step. A regex of 18 characters can use all that llguidance allows, which
# takes a second and 160 MB.
_LIMITS: Any = {
    "max_lexer_states": 50_000,
    "initial_lexer_fuel": 100_000,
    "step_lexer_fuel": 100_000,
}


class Grammars:
    """Starts answers in grammars over one vocabulary.

    Two hundred thousand tokens make a trie of a hundred megabytes, in a second: only the first
    constrained request pays for it. Each answer has an automaton of its own: copies of one would
    share its states and their bound, so that a long answer would end others.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # one grammar is compiled at a time
        self._trie: Any = None

    def start(self, grammar: str, *tags: int | None) -> "Matcher":
        """An answer of this grammar, which may have these control tokens.

        Raises:
            GrammarRefused: it is too complex, or no text is in it.
        """
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False, **_LIMITS)
        with self._lock:
            if self._trie is None:
                self._trie = _trie_of(self._tokenizer)
            matcher = LLMatcher(self._trie, grammar, log_level=0, limits=limits)
            matcher.compute_bitmask()  # what is too complex mostly shows here
        if matcher.is_error():
            raise GrammarRefused(_reason(matcher))
        try:
            return Matcher(matcher, _with(self._texts, tags), self._tokenizer.stop_ids)
        except ConstraintFailed as error:
            raise GrammarRefused(error.reason) from None

    @cached_property
    def _texts(self) -> bytes:
        """The tokens that stand for text."""
        size = self._tokenizer.vocab_size
        bits = np.zeros(-(-size // 32) * 32, np.uint8)
        bits[:size] = [bool(self._tokenizer.piece_bytes(index)) for index in range(size)]
        return np.packbits(bits, bitorder="little").tobytes()


class Matcher:
    """What may follow in one answer. Implements the engine's `Constraint`.

    `allowed` are the tokens that can be in it. What ends it may follow where the grammar does.
    """

    def __init__(self, matcher: Any, allowed: bytes, ends: Collection[int]) -> None:
        self._matcher, self._ends = matcher, ends
        self._allowed = np.frombuffer(allowed, np.uint8)
        self.is_complete = False
        self.mask: bytes = self._next_mask()

    def copy(self) -> "Matcher":
        """Another text of the grammar, in the same answer: both share the bound on states."""
        return Matcher(self._matcher.deep_copy(), self._allowed.tobytes(), self._ends)

    def take(self, token: int) -> None:
        """Go on with this token.

        Raises:
            ConstraintFailed: the grammar has become too complex, or does not have it.
        """
        try:
            if not self._matcher.consume_token(token):
                raise ConstraintFailed(_reason(self._matcher))
            self.is_complete = self._matcher.is_stopped()
            if not self.is_complete:
                self.mask = self._next_mask()
        except (ValueError, RuntimeError) as error:  # the engine's thread must not die of it
            raise ConstraintFailed(str(error)[:300]) from error

    def foresee(self, guess: Sequence[int], most: int) -> list[tuple[int, bytes]]:
        """At most `most` of the tokens that will follow, each with the mask behind it: those that
        must, and where several may, those of the guess. What ends the text is none of them."""
        found: list[tuple[int, bytes]] = []
        mask, taken = self.mask, 0
        try:
            while len(found) < most:
                token = self._foreseen(mask, guess, [each for each, _ in found])
                if token is None or not self._matcher.consume_token(token):
                    break
                taken += 1
                if self._matcher.is_stopped():
                    break
                mask = self._next_mask()
                found.append((token, mask))
        except (ConstraintFailed, ValueError, RuntimeError):
            found = []  # `take` says so, if the answer goes there
        self._matcher.rollback(taken)
        return found

    def _foreseen(self, mask: bytes, guess: Sequence[int], before: list[int]) -> int | None:
        bits = int.from_bytes(mask, "little")
        token = None
        if bits.bit_count() == 1:
            token = bits.bit_length() - 1
        elif len(before) < len(guess) and list(guess[: len(before)]) == before:
            token = guess[len(before)]
        fits = token is not None and token not in self._ends and bits >> token & 1
        return token if fits else None

    def _next_mask(self) -> bytes:
        """A stranger's grammar may name control tokens: they are taken out."""
        found = np.frombuffer(self._matcher.compute_bitmask(), np.uint8, len(self._allowed))
        mask = (found & self._allowed).tobytes()
        if self._matcher.is_accepting():
            mask = _with(mask, self._ends)
        if self._matcher.is_error() or not any(mask):
            raise ConstraintFailed(_reason(self._matcher) or "no token may follow")
        return mask


class InTurn:
    """Constraints on what the model says in a turn, and on its calls; none on what it thinks.
    Implements the engine's `Constraint`.

    `content` is what it says; None: anything. `call` is what may stand between the tags of a call,
    with the closing one; None: no call. `must_call`: it may say nothing else. `may_think`: a
    thought may come first. `in_thought`: one has begun.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        content: Matcher | None,
        call: Matcher | None = None,
        *,
        must_call: bool = False,
        only_one_call: bool = False,
        may_think: bool = False,
        in_thought: bool = False,
    ) -> None:
        self._tokenizer, self._tags = tokenizer, tokenizer.tags
        self._content, self._any_call = content, call
        self._must_call, self._only_one_call = must_call, only_one_call
        self._may_think = may_think and not in_thought
        self._call: Matcher | None = None
        self._part = _Part.THOUGHT if in_thought else _Part.START

    @property
    def is_complete(self) -> bool:
        """Nothing more may be said."""
        if self._part is _Part.CALLED:
            return self._only_one_call
        said = self._part in (_Part.START, _Part.CONTENT)
        return said and self._content is not None and self._content.is_complete

    @property
    def mask(self) -> bytes | None:
        """What may follow, tags included."""
        match self._part:
            case _Part.THOUGHT:
                unread = set() if self._any_call else {self._tags.call.begin}  # see TurnStream
                return _without(self._all, {*self._tokenizer.stop_ids, *unread})
            case _Part.CALL:
                assert self._call is not None
                return self._call.mask
            case _Part.CALLED:
                return _with(self._none, {*self._tokenizer.stop_ids, self._tags.call.begin})
            case _Part.CONTENT:
                return None if self._content is None else self._content.mask
        if self._content is None and not self._must_call:
            return None
        openings = {self._tags.call.begin} if self._any_call else set()
        openings |= {self._tags.thought.begin} if self._may_think else set()
        if self._content is None or self._must_call:
            return _with(self._none, openings)
        return _with(self._content.mask, openings)

    def take(self, token: int) -> None:
        """Go on with this token.

        Raises:
            ConstraintFailed: see `Matcher.take`.
        """
        tags, part = self._tags, self._part
        if part is _Part.CALL:
            assert self._call is not None
            self._call.take(token)
            self._part = _Part.CALLED if self._call.is_complete else part
        elif token == tags.call.begin and self._any_call is not None:
            self._part, self._call = _Part.CALL, self._any_call.copy()
        elif part is _Part.THOUGHT:
            self._part = _Part.START if token == tags.thought.end else part
        elif part is _Part.START and self._may_think and token == tags.thought.begin:
            self._part, self._may_think = _Part.THOUGHT, False
        else:
            self._part = _Part.CONTENT
            if self._content is not None:
                self._content.take(token)

    @property
    def _none(self) -> bytes:
        return bytes(-(-self._tokenizer.vocab_size // 32) * 4)

    @property
    def _all(self) -> bytes:
        return b"\xff" * len(self._none)

    def foresee(self, guess: Sequence[int], most: int) -> list[tuple[int, bytes]]:
        """See `Matcher.foresee`; none where a tag may come."""
        if self._part is _Part.CALL:
            assert self._call is not None
            return self._call.foresee(guess, most)
        if self._part is _Part.CONTENT and self._content is not None:
            return self._content.foresee(guess, most)
        return []


class _Part(Enum):
    START = auto()
    THOUGHT = auto()
    CONTENT = auto()
    CALL = auto()
    CALLED = auto()  # at least once


def _with(mask: bytes, ids: Iterable[int | None]) -> bytes:
    """The mask with these tokens."""
    bits = bytearray(mask)
    for index in ids:
        if index is not None:
            bits[index // 8] |= 1 << index % 8
    return bytes(bits)


def _without(mask: bytes, ids: Iterable[int | None]) -> bytes:
    """The mask without these tokens."""
    bits = bytearray(mask)
    for index in ids:
        if index is not None:
            bits[index // 8] &= ~(1 << index % 8)
    return bytes(bits)


class _Vocabulary:
    """The tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens = list(map(tokenizer.piece_bytes, range(tokenizer.vocab_size)))
        self.special_token_ids = [index for index, data in enumerate(self.tokens) if not data]
        for index in self.special_token_ids:  # their names; llguidance marks them as no text
            self.tokens[index] = tokenizer.piece(index).encode()

    def __call__(self, text: str | bytes) -> list[int]:
        """How the text is mostly written."""
        if isinstance(text, bytes):
            text = text.decode()
        return self._tokenizer.encode_literal(text)


def _trie_of(tokenizer: Tokenizer) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    ends = sorted(tokenizer.stop_ids)
    wrapped = TokenizerWrapper(_Vocabulary(tokenizer))
    return LLTokenizer(wrapped, n_vocab=tokenizer.vocab_size, eos_token=ends)


def _reason(matcher: Any) -> str:
    """The first line of the fault, without what only tells where in Rust it is."""
    text: str = matcher.get_error()
    return text.splitlines()[0].removesuffix("<non-verbose/>")[:300] if text else ""
