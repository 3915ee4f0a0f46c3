"""Hugging Face's tokenizer.json turned back into the SentencePiece model that it was made from.

Gemma's file is a BPE over SentencePiece's pieces: spaces are U+2581, unknown characters fall back
to bytes, and merges are in the order of SentencePiece's scores. Format: huggingface/tokenizers.
"""

import json
from collections.abc import Mapping
from typing import Any

from gemma_server.errors import ModelLoadError
from gemma_server.text.sentencepiece_model import (
    PieceType,
    is_byte,
    model_from_pieces,
    scores_of,
)

_TAB_BYTE = "<0x09>"
_MOST_PIECES, _MOST_MERGES = 1 << 20, 1 << 22  # Gemma 3 has 262,144 and some 515,000


def model_from_json(data: bytes) -> bytes:
    """The SentencePiece model of a tokenizer.json.

    Raises:
        ModelLoadError: it is not a tokenizer.json, or not of Gemma's kind; the text says why.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"not JSON: {str(error)[:200]}") from None
    try:
        _refuse_other_kinds(found["model"])
        added = found.get("added_tokens", [])
        return _build(found["model"]["vocab"], found["model"]["merges"], added)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__} {str(error)[:200]}"
        raise ModelLoadError(f"not a tokenizer.json: {reason}") from None


def _refuse_other_kinds(model: Mapping[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE" or not model.get("byte_fallback"):
        raise ModelLoadError("not a Gemma tokenizer: not a BPE with byte fallback")


def _build(vocab: Mapping[str, int], merges: list[Any], added: list[Mapping[str, Any]]) -> bytes:
    if len(vocab) + len(added) > _MOST_PIECES or len(merges) > _MOST_MERGES:
        raise ModelLoadError(f"{len(vocab)} pieces and {len(merges)} merges are more than Gemma's")
    ids = dict(vocab)
    if _TAB_BYTE not in ids and "\t" in ids:
        ids[_TAB_BYTE] = ids.pop("\t")  # the file of Gemma 1 and 2 has renamed this one byte
    special = {token["content"]: bool(token["special"]) for token in added}
    ids |= {token["content"]: token["id"] for token in added}
    pieces = sorted(ids, key=ids.__getitem__)
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise ModelLoadError("its ids are not 0 to N, each once")
    types = [_type(piece, special) for piece in pieces]
    return model_from_pieces(pieces, scores_of(pieces, merges), types)


def _type(piece: str, special: Mapping[str, bool]) -> PieceType:
    if piece in special:
        return PieceType.CONTROL if special[piece] else PieceType.USER_DEFINED
    return PieceType.BYTE if is_byte(piece) else PieceType.NORMAL
