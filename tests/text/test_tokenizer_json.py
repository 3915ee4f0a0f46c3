"""tokenizer.json gives the ids of the SentencePiece model that it was made from.

On the real vocabulary, too: tests/real/test_tokens.py.
"""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_server.errors import ModelLoadError
from gemma_server.text.sentencepiece_model import model_from_pieces
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.text.tokenizer_json import model_from_json
from testing.counts import cases

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
WORDS = ["th", "he", "in", "er", "the", "an", "\u2581the", "\u2581th", "\u2581a", "ther", "inthe"]
DEFINED = ["\n\n", "\u2581\u2581", "<b>"]


def _pieces() -> tuple[list[str], list[float], list[int]]:
    """A small vocabulary in Gemma's order: special, defined, bytes, merged pieces, characters."""
    letters = [*"abcdefghinrst\u2581\n"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*SPECIAL, *DEFINED, *bytes_, *WORDS, *letters]
    types = [CONTROL] * 6 + [USER_DEFINED] * 3 + [BYTE] * 256 + [NORMAL] * (len(pieces) - 265)
    scores = [0.0] * 265 + [-float(rank) for rank in range(len(pieces) - 265)]
    return pieces, scores, types


def as_json(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], *, strings: bool = False
) -> dict[str, Any]:
    """What transformers' converter makes of a SentencePiece model: all splits of every piece."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    normal = [index for index, kind in enumerate(types) if kind == NORMAL]
    merges = [
        [pieces[index][:cut], pieces[index][cut:]]
        for index in sorted(normal, key=lambda index: -scores[index])
        for cut in range(1, len(pieces[index]))
        if pieces[index][:cut] in ids and pieces[index][cut:] in ids
    ]
    added = [
        {"id": index, "content": pieces[index], "special": kind != USER_DEFINED}
        for index, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    added.append({"id": len(pieces), "content": "<image_soft_token>", "special": True})
    shown: list[Any] = [" ".join(merge) for merge in merges] if strings else merges
    model = {"type": "BPE", "byte_fallback": True, "vocab": ids, "merges": shown}
    return {"version": "1.0", "added_tokens": added, "model": model}


def _tokenizer(found: dict[str, Any]) -> Tokenizer:
    return Tokenizer(model_from_json(json.dumps(found).encode()))


OURS = Tokenizer(model_from_pieces(*_pieces()))
THEIRS = _tokenizer(as_json(*_pieces()))
TEXTS = st.lists(
    st.sampled_from([*"abcdefghinrst \nüx", "the", " the", "  ", "\n\n", "<b>", "<eos>", "🎉"])
).map("".join)


@settings(max_examples=cases(100, 500))
@given(TEXTS)
def test_ids_are_the_models(text: str) -> None:
    assert THEIRS.encode(text) == OURS.encode(text)
    assert THEIRS.decode(THEIRS.encode(text)) == text


def test_the_vocabulary_is_the_models() -> None:
    """The soft token of images stands behind it: tests/serving/test_checkpoint.py leaves it out."""
    assert THEIRS.vocab_size == OURS.vocab_size + 1
    assert THEIRS.stop_ids == OURS.stop_ids


def test_tokens_may_be_added_behind_the_soft_token_of_images() -> None:
    found = as_json(*_pieces())
    image = found["added_tokens"][-1]["id"]
    found["added_tokens"].append({"id": image + 1, "content": "<mine>", "special": False})
    tokenizer = _tokenizer(found)
    assert tokenizer.encode("a<mine>b")[2] == image + 1
    assert tokenizer.vocab_size == OURS.vocab_size + 2


def test_merges_may_be_strings_as_older_files_have_them() -> None:
    older = _tokenizer(as_json(*_pieces(), strings=True))
    assert older.encode("in the other") == OURS.encode("in the other")


def test_the_byte_of_a_tab_may_be_written_as_a_tab() -> None:
    """So it is in the files of Gemma 1 and 2."""
    found = as_json(*_pieces())
    vocab = found["model"]["vocab"]
    vocab["\t"] = vocab.pop("<0x09>")
    assert _tokenizer(found).encode("a\tb") == OURS.encode("a\tb")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a tokenizer.json"),
        (b"{}", "not a tokenizer.json"),
        (b'{"model": 1}', "not a tokenizer.json"),
        (b'{"model": {"type": "WordPiece"}}', "not a BPE"),
        (b'{"model": {"type": "BPE", "byte_fallback": false}}', "not a BPE"),
        (b'{"model": {"byte_fallback": true, "vocab": {"a": 7}, "merges": []}}', "0 to N"),
        (b'{"model": {"byte_fallback": true, "vocab": {"a": "b", "c": 1}, "merges": []}}', "json"),
        (b'{"model": {"byte_fallback": true, "vocab": {"a": 0}, "merges": ["a"]}}', "json"),
        (b'{"model": {"byte_fallback": true, "vocab": {"a": 0}, "merges": [1]}}', "json"),
    ],
)
def test_what_is_no_gemma_tokenizer_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        model_from_json(data)
