"""Gemma's SentencePiece tokenizer, from its own file or rebuilt from a GGUF file's arrays."""

import re
from collections.abc import Iterable, Sequence
from enum import IntEnum

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as model_pb

from gemma_server.errors import InvalidRequest, ModelLoadError

TURN_MARKERS = ("<start_of_turn>", "<end_of_turn>")
# CodeGemma's, for filling in the middle; it ends its answers with any of them.
CODE_MARKERS = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>")
_SPACE = "\u2581"  # what SentencePiece writes for a space within a piece
_CONTROL_PIECES = frozenset({"<pad>", "<eos>", "<bos>"})
_MARKERS = frozenset({*TURN_MARKERS, *CODE_MARKERS})
_BPE = 2  # TrainerSpec.ModelType


class PieceType(IntEnum):
    """SentencePiece's ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # no text becomes it
    USER_DEFINED = 4  # any text that spells it does, before all others
    UNUSED = 5
    BYTE = 6


_NORMAL = int(PieceType.NORMAL)  # comparing enumerations takes longer
_WITHOUT_TEXT = frozenset({PieceType.UNKNOWN, PieceType.CONTROL})
_NO_SPACES = frozenset(map(int, (PieceType.CONTROL, PieceType.BYTE)))


class Tokenizer:
    """Encodes prompts and tells what bytes each id stands for. Safe to share between threads.

    Raises:
        ModelLoadError: the bytes are not a SentencePiece model, or not Gemma's.
    """

    def __init__(self, model: bytes) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            marked, self._texts, self._types = _parsed(model)
            self._pieces.LoadFromSerializedProto(marked)
        except (RuntimeError, ValueError, IndexError, DecodeError) as error:
            raise ModelLoadError(f"not a SentencePiece tokenizer: {error}") from None
        self.vocab_size: int = self._pieces.GetPieceSize()
        self.bos_id: int = self._pieces.bos_id()
        self.eos_id: int = self._pieces.eos_id()
        if not all(0 <= index < self.vocab_size for index in (self.bos_id, self.eos_id)):
            raise ModelLoadError("not a Gemma tokenizer: it has no <bos> or no <eos>")
        self.start_of_turn_id, self.end_of_turn_id = map(self._id_of, TURN_MARKERS)
        code = {marker: self._id_of(marker) for marker in CODE_MARKERS if self._has(marker)}
        turns = zip(TURN_MARKERS, (self.start_of_turn_id, self.end_of_turn_id), strict=True)
        self._markers = dict(turns) | code
        self._split = re.compile("(" + "|".join(map(re.escape, self._markers)) + ")")
        self.stop_ids = frozenset({self.eos_id, self.end_of_turn_id, *code.values()})

    def encode(self, text: str) -> list[int]:
        """`<bos>`, then the text's ids. Turn markers become their tokens, and CodeGemma's theirs;
        `<bos>` in the text stays text.

        Raises:
            InvalidRequest: the text is not valid Unicode (a lone surrogate).
        """
        ids = [self.bos_id]
        for part in self._split.split(text):
            marker = self._markers.get(part)
            ids.extend(self.encode_literal(part) if marker is None else [marker])
        return ids

    def encode_literal(self, text: str) -> list[int]:
        """The text's ids alone; whatever it says, no marker among them.

        Raises:
            InvalidRequest: the text is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"the text has a lone surrogate at character {error.start}: not valid Unicode",
                param="prompt",
            ) from None
        ids: list[int] = self._pieces.EncodeAsIds(text)
        return ids

    def piece_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes, maybe part of a character, of one id; none for control tokens, and for
        an embedding row that only pads the table."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        return _piece_bytes(self._texts[token_id], self._types[token_id])

    def token_name(self, token_id: int) -> str:
        """One id for a person: its text, or what a control token is called; bytes that are no
        whole character are spelt as OpenAI spells them, `bytes:\\xf0`."""
        data = self.piece_bytes(token_id)
        if not data and 0 <= token_id < self.vocab_size:
            return self._texts[token_id]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.piece_bytes, token_ids)).decode("utf-8", errors="replace")

    def _has(self, piece: str) -> bool:
        index: int = self._pieces.PieceToId(piece)
        return 0 <= index < self.vocab_size and bool(self._pieces.IdToPiece(index) == piece)

    def _id_of(self, piece: str) -> int:
        if not self._has(piece):
            raise ModelLoadError(f"not a Gemma tokenizer: it has no piece {piece}")
        token_id: int = self._pieces.PieceToId(piece)
        return token_id


def _parsed(model: bytes) -> tuple[bytes, list[str], list[int]]:
    """The model, its pieces' texts and their types. Markers become control pieces: in Google's own
    file any text spells them. Raises ValueError for a damaged piece."""
    proto = model_pb.ModelProto()  # type: ignore[attr-defined]  # generated at run time
    proto.ParseFromString(model)
    texts = [piece.piece for piece in proto.pieces]
    if not set(map(type, texts)) <= {str}:  # bytes are protobuf's way of saying: no UTF-8
        damaged = next(text for text in texts if not isinstance(text, str))
        raise ValueError(f"piece {damaged!r:.100} is no UTF-8")
    for index in [index for index, text in enumerate(texts) if text in _MARKERS]:
        proto.pieces[index].type = PieceType.CONTROL
    types = [piece.type for piece in proto.pieces]
    for text in [text for text, kind in zip(texts, types, strict=True) if kind == PieceType.BYTE]:
        _piece_bytes(text, PieceType.BYTE)
    return proto.SerializeToString(), texts, types


def _piece_bytes(text: str, kind: int) -> bytes:
    """What a piece stands for. Raises ValueError for a damaged one."""
    if kind in _WITHOUT_TEXT:
        return b""
    if kind == PieceType.BYTE:  # "<0x0A>"
        return bytes([int(text[3:5], 16)])
    return text.replace(_SPACE, " ").encode()


def _own_type(piece: str, kind: int, *, is_unknown: bool) -> int:
    """The type in Google's own model of a piece that GGUF types as `kind`."""
    if is_unknown:
        return PieceType.UNKNOWN
    if piece in _CONTROL_PIECES:
        return PieceType.CONTROL
    return PieceType.USER_DEFINED if kind == PieceType.CONTROL else kind


def model_from_pieces(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> bytes:
    """A SentencePiece BPE model as Gemma's: identity normaliser, byte fallback, digits split.

    `types` are SentencePiece's own numbers, which GGUF keeps. GGUF writes spaces in user-defined
    pieces as they are; within a model they are U+2581. Its converter also types `<mask>` and
    `<unused1>` as control; in Google's own model they are pieces that a text may spell.
    """
    if "<unk>" not in pieces:
        raise ModelLoadError("not a Gemma tokenizer: it has no piece <unk>")
    unknown = list(pieces).index("<unk>")
    model = model_pb.ModelProto()  # type: ignore[attr-defined]  # generated at run time
    trainer = model.trainer_spec
    trainer.model_type, trainer.byte_fallback, trainer.split_digits = _BPE, True, True
    trainer.vocab_size, trainer.unk_id, trainer.unk_piece = len(pieces), unknown, "<unk>"
    trainer.pad_id, trainer.eos_id, trainer.bos_id = 0, 1, 2
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece = "<pad>", "<eos>", "<bos>"
    normalizer = model.normalizer_spec
    normalizer.name, normalizer.escape_whitespaces = "identity", True
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    add = model.pieces.add  # the loop turns a quarter of a million times
    for index, (piece, score, kind) in enumerate(zip(pieces, scores, types, strict=True)):
        if kind != _NORMAL or piece in _CONTROL_PIECES or index == unknown:
            kind = _own_type(piece, kind, is_unknown=index == unknown)
        literal = piece if kind in _NO_SPACES else piece.replace(" ", _SPACE)
        add(piece=literal, score=score, type=kind)
    serialized: bytes = model.SerializeToString()
    return serialized
