"""Gemma's tokenizer: text to ids, ids to bytes."""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

import sentencepiece

from gemma_server.errors import InvalidText, ModelLoadError
from gemma_server.text.family import Tags
from gemma_server.text.sentencepiece_model import PieceType, read_model

_SPECIAL = (PieceType.CONTROL, PieceType.USER_DEFINED)


class SpanIds(NamedTuple):
    """The control tokens around a part of a turn; None where the vocabulary has none."""

    begin: int | None = None
    end: int | None = None


class TagIds(NamedTuple):
    """What marks the parts of an answer that are no text for the reader."""

    call: SpanIds = SpanIds()
    thought: SpanIds = SpanIds()
    quote: int | None = None


NO_TAGS = TagIds()


class Tokenizer:
    """Encodes prompts and tells what bytes each id stands for. Safe to share between threads.

    `declared_stops` are the ids that the checkpoint says end an answer, beside the family's.

    Raises:
        ModelLoadError: the bytes are not a SentencePiece model, or not Gemma's.
    """

    def __init__(self, model: bytes, declared_stops: Collection[int] = ()) -> None:
        self._model = read_model(model)
        self.family = family = self._model.family
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(self._model.model)
        except RuntimeError as error:
            raise ModelLoadError(f"not a SentencePiece tokenizer: {error}") from None
        self.vocab_size: int = self._pieces.GetPieceSize()
        self.bos_id: int = self._pieces.bos_id()
        self.eos_id: int = self._pieces.eos_id()
        if not all(0 <= index < self.vocab_size for index in (self.bos_id, self.eos_id)):
            raise ModelLoadError("not a Gemma tokenizer: it has no <bos> or no <eos>")
        self.start_of_turn_id = self._id_of(family.start_of_turn)
        self.end_of_turn_id = self._id_of(family.end_of_turn)
        self._markers = {piece: self._id_of(piece) for piece in family.markers if self._has(piece)}
        self.tags = self._tag_ids(family.tags)
        self._split = re.compile("(" + "|".join(map(re.escape, self._markers)) + ")")
        ends = {self.eos_id, *(self._markers[end] for end in family.ends if end in self._markers)}
        declared = {stop for stop in declared_stops if stop < self.vocab_size}
        self.stop_ids = frozenset(ends | declared)

    def encode(self, text: str) -> list[int]:
        """`<bos>`, then the text's ids. Turn markers and CodeGemma's markers become their tokens;
        `<bos>` in the text stays text.

        Raises:
            InvalidText: the text is not valid Unicode (a lone surrogate).
        """
        ids = [self.bos_id]
        for part in self._split.split(text):
            marker = self._markers.get(part)
            ids.extend(self.encode_literal(part) if marker is None else [marker])
        return ids

    def encode_literal(self, text: str) -> list[int]:
        """The text's ids alone; markers in it stay text.

        Raises:
            InvalidText: the text is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidText(error.start) from None
        ids: list[int] = self._pieces.EncodeAsIds(text)
        return ids

    def least_tokens(self, text: str) -> int:
        """So many ids at least stand for the text: no piece is longer than the longest."""
        return -(-len(text.encode("utf-8", errors="replace")) // self._model.longest)

    def piece_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes, maybe part of a character, of one id; none for control tokens, and for
        an embedding row that only pads the table."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        return self._model.bytes_of(token_id)

    def piece(self, token_id: int) -> str:
        """How the vocabulary spells one id."""
        return self._model.texts[token_id]

    def agrees_with(self, other: "Tokenizer") -> bool:
        """Whether every id that both have stands for the same piece."""
        most = min(self.vocab_size, other.vocab_size)
        return self._model.texts[:most] == other._model.texts[:most]

    def control_id(self, text: str) -> int | None:
        """The id of the control token that is spelled like this, if there is one."""
        index: int = self._pieces.PieceToId(text)
        return index if self._has(text) and self._pieces.IsControl(index) else None

    def special_pieces(self) -> dict[str, int]:
        """The ids of the pieces that no merge makes: control tokens, and those that text spells."""
        kinds = enumerate(zip(self._model.texts, self._model.types, strict=True))
        return {text: index for index, (text, kind) in kinds if kind in _SPECIAL}

    def token_name(self, token_id: int) -> str:
        """One id for a person: its text, or the name of a control token. Bytes that are not whole
        characters are written as OpenAI writes them, `bytes:\\xf0`."""
        data = self.piece_bytes(token_id)
        if not data and 0 <= token_id < self.vocab_size:
            return self._model.texts[token_id]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.piece_bytes, token_ids)).decode("utf-8", errors="replace")

    def _tag_ids(self, tags: Tags | None) -> TagIds:
        if tags is None:
            return NO_TAGS
        find = self._markers.get
        thought = SpanIds(*map(find, tags.thought)) if tags.thought else SpanIds()
        return TagIds(SpanIds(*map(find, tags.call)), thought, find(tags.quote))

    def _has(self, piece: str) -> bool:
        index: int = self._pieces.PieceToId(piece)
        return 0 <= index < self.vocab_size and bool(self._pieces.IdToPiece(index) == piece)

    def _id_of(self, piece: str) -> int:
        if not self._has(piece):
            raise ModelLoadError(f"not a Gemma tokenizer: it has no piece {piece}")
        token_id: int = self._pieces.PieceToId(piece)
        return token_id
