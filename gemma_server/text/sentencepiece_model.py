"""Gemma's SentencePiece model: read from its own file, or built from another file's pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as model_pb

from gemma_server.errors import ModelLoadError
from gemma_server.text.family import GEMMA4, Family, family_with

_SPACE = "\u2581"  # what SentencePiece writes for a space within a piece
_CONTROL_PIECES = frozenset({"<pad>", "<eos>", "<bos>"})
_BPE = 2  # TrainerSpec.ModelType


class PieceType(IntEnum):
    """SentencePiece's ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # no text is encoded as it
    USER_DEFINED = 4  # text that spells it always is, before other pieces
    UNUSED = 5
    BYTE = 6


_NORMAL = int(PieceType.NORMAL)  # comparing enumerations takes longer
_WITHOUT_TEXT = frozenset({PieceType.UNKNOWN, PieceType.CONTROL})
# Nothing merges into these: without them all other text is encoded as before.
_LEFT_OUT = frozenset({PieceType.CONTROL, PieceType.USER_DEFINED, PieceType.UNUSED})
_NO_SPACES = frozenset(map(int, (PieceType.CONTROL, PieceType.BYTE)))


@dataclass(frozen=True)
class Pieces:
    """A model as SentencePiece loads it, with its pieces."""

    model: bytes
    texts: list[str]
    types: list[int]
    family: Family

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest text that a piece stands for."""
        return max(len(text.replace(_SPACE, " ").encode()) for text in self.texts)

    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes, maybe part of a character, that a piece stands for."""
        return _piece_bytes(self.texts[token_id], self.types[token_id])


def read_model(model: bytes) -> Pieces:
    """The model, in which its family's markers are control pieces: in Google's own file any text
    spells them.

    Raises:
        ModelLoadError: the bytes are not a SentencePiece model, or a piece is damaged.
    """
    proto = model_pb.ModelProto()  # type: ignore[attr-defined]  # generated at run time
    try:
        proto.ParseFromString(model)
        texts = [piece.piece for piece in proto.pieces]
        if not set(map(type, texts)) <= {str}:  # protobuf gives bytes for invalid UTF-8
            damaged = next(text for text in texts if not isinstance(text, str))
            raise ValueError(f"piece {damaged!r:.100} is no UTF-8")
        family = family_with(set(texts))
        markers = set(family.markers)
        for index in [index for index, text in enumerate(texts) if text in markers]:
            proto.pieces[index].type = PieceType.CONTROL
        types = [piece.type for piece in proto.pieces]
        for text, kind in zip(texts, types, strict=True):
            if kind == PieceType.BYTE:
                _piece_bytes(text, kind)
        return Pieces(proto.SerializeToString(), texts, types, family)
    except (ValueError, IndexError, DecodeError) as error:
        raise ModelLoadError(f"not a SentencePiece tokenizer: {error}") from None


def without_last(model: bytes, rows: int) -> tuple[bytes, list[str]]:
    """The model cut to the pieces that have a row of the embedding, and what was left out.

    Raises:
        ModelLoadError: text is made of one of the others, so that it cannot be left out.
    """
    proto = model_pb.ModelProto()  # type: ignore[attr-defined]  # generated at run time
    proto.ParseFromString(model)
    extra = proto.pieces[rows:]
    for index, piece in enumerate(extra, start=rows):
        if piece.type not in _LEFT_OUT:
            raise ModelLoadError(f"its piece {index}, {piece.piece!r:.40}, has no embedding")
    del proto.pieces[rows:]
    serialized: bytes = proto.SerializeToString()
    return serialized, [piece.piece for piece in extra]


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


def is_byte(piece: str) -> bool:
    """Whether a piece is spelled as one for a byte: `<0x0A>`."""
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def scores_of(pieces: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """SentencePiece's scores for merges in their order: the place of the first merge that makes a
    piece. Merges are pairs, or "a b" strings."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    # A single character, which no merge makes, never competes: any score will do.
    return [-float(ranks.get(piece, 0)) for piece in pieces]


def types_with_newlines(pieces: Sequence[str], types: Sequence[int]) -> list[int]:
    """The types of the pieces where nothing says how Gemma 4's newlines merge: the longest run
    first, and no run is part of another piece. In Google's own order of merges they do the same."""
    if family_with(set(pieces)) is not GEMMA4:
        return list(types)
    return [
        PieceType.USER_DEFINED if kind == _NORMAL and not piece.strip("\n") else kind
        for piece, kind in zip(pieces, types, strict=True)
    ]


def _piece_bytes(text: str, kind: int) -> bytes:
    """The bytes that a piece stands for. Raises ValueError for a damaged one."""
    if kind in _WITHOUT_TEXT:
        return b""
    if kind == PieceType.BYTE:  # "<0x0A>"
        return bytes([int(text[3:5], 16)])
    return text.replace(_SPACE, " ").encode()
