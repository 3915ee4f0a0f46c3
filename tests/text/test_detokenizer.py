"""The incremental detokeniser: no part of a stop string, no half character, nothing lost."""

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gemma_server.text.detokenizer import TextStream
from gemma_server.text.stop_strings import StopStrings


def run(pieces: list[bytes], stops: list[str], min_tokens: int = 0) -> tuple[list[str], bool]:
    stream = TextStream(pieces.__getitem__, StopStrings(stops), min_tokens)
    out = []
    for index in range(len(pieces)):
        out.append(stream.push(index))
        if stream.stopped:
            return out, True
    out.append(stream.close())
    return out, stream.stopped


def test_a_character_split_over_tokens_comes_out_whole() -> None:
    out, _ = run([b"a\xf0", b"\x9f", b"\x8e\x89", b"b"], [])
    assert out == ["a", "", "\N{PARTY POPPER}", "b", ""]


def test_half_a_character_at_the_end_is_not_lost_in_silence() -> None:
    assert run([b"a", b"\xf0\x9f"], [])[0] == ["a", "", "\ufffd"]


def test_a_stop_string_split_over_tokens_never_leaks() -> None:
    out, stopped = run([b"one <", b"/an", b"swer> two"], ["</answer>"])
    assert stopped
    assert out == ["one ", "", ""]


def test_text_that_only_begins_like_a_stop_string_comes_out_in_the_end() -> None:
    assert run([b"1 <", b"/an"], ["</answer>"])[0] == ["1 ", "", "</an"]


def test_of_overlapping_stop_strings_the_one_that_ends_first_counts() -> None:
    assert run([b"xabcdy"], ["abcd", "c"])[0] == ["xab"]
    assert run([b"xabcdy"], ["bc", "abc"])[0] == ["x"]


def test_a_stop_string_inside_a_multi_byte_character_s_neighbourhood() -> None:
    assert run([b"\xe2\x82", b"\xac1\xe2", b"\x82\xac2"], ["€2"])[0] == ["", "€1", ""]


def test_the_first_tokens_belong_to_no_stop_string() -> None:
    assert run([b"stop", b"stop"], ["stop"], 1) == (["stop", ""], True)
    assert run([b"st", b"op", b"s", b"top"], ["stop"], 1) == (["st", "op", "", ""], True)
    assert run([b"stop"], ["stop"], 9) == (["stop", ""], False)


def test_many_long_stop_strings_cost_little() -> None:
    """Each character is looked at a bounded number of times, though all nearly match."""
    stops = StopStrings(["a" * 200 + chr(200 + index) for index in range(64)])
    looked = 0

    class Counted(dict[tuple[int, str], int]):
        def get(self, *args: Any) -> Any:
            nonlocal looked
            looked += 1
            return super().get(*args)

    stops._next = Counted(stops._next)
    stream = TextStream(lambda _: b"a" * 150 + b"b", stops)
    for _ in range(20):
        assert stream.push(0)[-1] == "b"
    assert looked < 3 * 20 * 151


texts = st.text(alphabet="ab<>é€🎉", max_size=30)


@given(texts, st.lists(st.text(alphabet="ab<>é€🎉", min_size=1, max_size=4), max_size=3), st.data())
def test_the_pieces_do_not_matter(text: str, stops: list[str], data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)) | {0, len(raw)})
    pieces = [raw[a:b] for a, b in itertools.pairwise(cuts)]
    out, stopped = run(pieces, stops)

    # The definition: cut where the first stop string is complete, at that string's beginning.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    expected = text
    if ends:
        first = min(ends)
        expected = min(
            (text[: first - len(stop)] for stop in stops if text[:first].endswith(stop)), key=len
        )
    assert "".join(out) == expected
    assert stopped == bool(ends)


@given(st.lists(st.binary(max_size=4), max_size=20))
def test_any_bytes_decode_as_they_would_in_one_go(pieces: list[bytes]) -> None:
    out, _ = run(pieces, [])
    assert "".join(out) == b"".join(pieces).decode("utf-8", errors="replace")
