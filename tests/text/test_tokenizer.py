"""The tokenizer on a vocabulary small enough to check by hand; the real one: test_real_model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_server.engine.fake import fake_pieces, fake_tokenizer
from gemma_server.errors import InvalidRequest, ModelLoadError
from gemma_server.text.tokenizer import Tokenizer, model_from_pieces

TOKENIZER = fake_tokenizer()
FIRST_BYTE = 6


def test_a_prompt_begins_with_exactly_one_bos() -> None:
    assert TOKENIZER.encode("hi") == [2, FIRST_BYTE + ord("h"), FIRST_BYTE + ord("i")]
    assert TOKENIZER.encode("<bos>hi").count(2) == 1
    assert TOKENIZER.encode("") == [2]


def test_turn_markers_become_their_tokens_and_eos_stays_text() -> None:
    ids = TOKENIZER.encode("<start_of_turn>a<end_of_turn><eos>")
    assert [token for token in ids if token < FIRST_BYTE] == [2, 4, 5]
    assert TOKENIZER.stop_ids == {1, 5}


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    for marker in ("<start_of_turn>", "<end_of_turn>"):
        text = text.replace(marker, "")
    try:
        ids = TOKENIZER.encode(text)
    except InvalidRequest:
        assert any(0xD800 <= ord(char) <= 0xDFFF for char in text)
        return
    # U+2581 is SentencePiece's own sign for a space: the two cannot be told apart.
    assert TOKENIZER.decode(ids) == text.replace("\u2581", " ")


def test_a_lone_surrogate_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate at character 1"):
        TOKENIZER.encode("a\ud800b")


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    assert TOKENIZER.decode([TOKENIZER.vocab_size, TOKENIZER.vocab_size + 50]) == ""


@pytest.mark.parametrize("model", [b"", b"not a model", b"\x00" * 100])
def test_bytes_that_are_no_tokenizer_are_refused(model: bytes) -> None:
    with pytest.raises(ModelLoadError):
        Tokenizer(model)


@pytest.mark.parametrize("missing", ["<start_of_turn>", "<bos>", "<eos>", "<unk>"])
def test_a_tokenizer_that_is_not_gemma_s_is_refused(missing: str) -> None:
    pieces, scores, types = fake_pieces()
    renamed = ["<other>" if piece == missing else piece for piece in pieces]
    with pytest.raises(ModelLoadError, match="Gemma"):
        Tokenizer(model_from_pieces(renamed, scores, types))
