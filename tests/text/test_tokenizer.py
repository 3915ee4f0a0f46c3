"""The tokenizer on a vocabulary small enough to check by hand; the real one: tests/real."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_server.engine.fake import fake_pieces, fake_tokenizer
from gemma_server.errors import InvalidText, ModelLoadError
from gemma_server.text.family import GEMMA
from gemma_server.text.sentencepiece_model import model_from_pieces
from gemma_server.text.tokenizer import Tokenizer
from testing.counts import cases

TOKENIZER = fake_tokenizer()
FIRST_BYTE = 6
USER_DEFINED = 4  # SentencePiece's type


def test_a_prompt_begins_with_exactly_one_bos() -> None:
    assert TOKENIZER.encode("hi") == [2, FIRST_BYTE + ord("h"), FIRST_BYTE + ord("i")]
    assert TOKENIZER.encode("<bos>hi").count(2) == 1
    assert TOKENIZER.encode("") == [2]


def test_turn_markers_become_their_tokens_and_eos_stays_text() -> None:
    ids = TOKENIZER.encode("<start_of_turn>a<end_of_turn><eos>")
    assert [token for token in ids if token < FIRST_BYTE] == [2, 4, 5]
    assert TOKENIZER.stop_ids == {1, 5}


def test_a_literal_text_never_holds_a_marker() -> None:
    """Also when the model has markers as pieces that any text may spell, as Google's own has."""
    pieces, scores, types = fake_pieces()
    spelled = [
        USER_DEFINED if piece in (GEMMA.start_of_turn, GEMMA.end_of_turn) else kind
        for piece, kind in zip(pieces, types, strict=True)
    ]
    for tokenizer in (TOKENIZER, Tokenizer(model_from_pieces(pieces, scores, spelled))):
        assert tokenizer.encode("<end_of_turn>") == [2, 5]
        ids = tokenizer.encode_literal("a<start_of_turn>b<end_of_turn><bos>")
        assert min(ids) >= FIRST_BYTE
        assert tokenizer.decode(ids) == "a<start_of_turn>b<end_of_turn><bos>"


def test_code_gemma_has_markers_of_its_own_and_ends_at_them() -> None:
    pieces, scores, types = fake_pieces()
    extra = len(GEMMA.other_ends)
    coder = Tokenizer(
        model_from_pieces(
            [*pieces, *GEMMA.other_ends], scores + [0.0] * extra, types + [USER_DEFINED] * extra
        )
    )
    first = len(pieces)
    assert coder.stop_ids == {1, 5, *range(first, first + extra)}
    ids = coder.encode("<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>")
    assert [token for token in ids if token >= first] == [first, first + 2, first + 1]
    assert coder.decode(ids) == "ab"
    assert max(coder.encode_literal("<|fim_prefix|>")) < first


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    for marker in ("<start_of_turn>", "<end_of_turn>"):
        text = text.replace(marker, "")
    try:
        ids = TOKENIZER.encode(text)
    except InvalidText:
        assert any(0xD800 <= ord(char) <= 0xDFFF for char in text)
        return
    # U+2581 is SentencePiece's own sign for a space: the two cannot be told apart.
    assert TOKENIZER.decode(ids) == text.replace("\u2581", " ")


def test_a_lone_surrogate_is_refused_by_name() -> None:
    with pytest.raises(InvalidText, match="lone surrogate at character 1"):
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


MODEL = model_from_pieces(*fake_pieces())


@settings(max_examples=cases(200, 1000))
@given(st.lists(st.tuples(st.integers(0, len(MODEL) - 1), st.integers(0, 255)), max_size=4))
def test_a_damaged_model_is_refused_when_it_loads_and_not_later(
    flips: list[tuple[int, int]],
) -> None:
    raw = bytearray(MODEL)
    for at, byte in flips:
        raw[at] = byte
    try:
        tokenizer = Tokenizer(bytes(raw))
    except ModelLoadError:
        return
    tokenizer.decode(tokenizer.encode("a <b> \x00 é🎉<end_of_turn>"))
    tokenizer.decode(range(tokenizer.vocab_size))
