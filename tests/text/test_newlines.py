"""Runs of newlines, longer ones than any piece too, become what the Hugging Face library makes."""

import json

import pytest

from gemma_server.text.sentencepiece_model import model_from_pieces, types_with_newlines
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.text.tokenizer_json import model_from_json
from testing.newlines import CONTROLS, LONGEST, ORDERS, PIECES, TEXTS
from testing.quality import GOLDENS

EXPECTED = json.loads((GOLDENS / "newlines.json").read_text())
CONTROL, NORMAL, BYTE = 3, 1, 6


def lengths(tokenizer: Tokenizer, text: str) -> str:
    """Of the text's pieces, which are never bytes here."""
    return " ".join(str(len(PIECES[index])) for index in tokenizer.encode_literal(text))


@pytest.mark.parametrize("order", ORDERS)
def test_they_merge_in_the_file_s_order(order: str) -> None:
    added = [
        {"id": index, "content": piece, "special": True}
        for index, piece in enumerate(PIECES[:CONTROLS])
    ]
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "vocab": {piece: index for index, piece in enumerate(PIECES)},
        "merges": ORDERS[order],
    }
    document = {"added_tokens": added, "model": model}
    tokenizer = Tokenizer(model_from_json(json.dumps(document).encode()))
    assert [lengths(tokenizer, text) for text in TEXTS] == EXPECTED[order]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS


def test_without_merges_the_longest_run_is_first() -> None:
    """As in Google's own order; GGUF files of Ollama's have scores that do not say it."""
    kinds = [BYTE if piece.startswith("<0x") else NORMAL for piece in PIECES]
    kinds[:CONTROLS] = [CONTROL] * CONTROLS
    scores = [-float(index) for index in range(len(PIECES))]
    types = types_with_newlines(PIECES, kinds)
    tokenizer = Tokenizer(model_from_pieces(PIECES, scores, types))
    for length in range(1, 101):
        whole, rest = divmod(length, LONGEST)
        expected = [str(LONGEST)] * whole + [str(rest)] * (rest > 0)
        assert lengths(tokenizer, "\n" * length) == " ".join(expected)
        assert " ".join(expected) == EXPECTED["longest first"][length - 1]
