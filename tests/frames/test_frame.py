"""Frames are cut where the specification says, however they arrive."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_server.frames.codec import (
    MAX_LENGTH,
    BrokenFraming,
    FrameDecoder,
    body_of,
    frame,
    kind_of,
)
from testing.counts import cases
from tests.frames.peer import VECTORS, packed

bodies = st.binary(max_size=300) | st.sampled_from((b"", b"\0" * 70_000))
frames = st.lists(st.builds(packed, st.integers(0, 255), bodies), max_size=6)


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda vector: vector["name"])
def test_the_vectors_are_what_is_written_and_read(vector: dict[str, str | int]) -> None:
    wire, body = bytes.fromhex(str(vector["wire_hex"])), bytes.fromhex(str(vector["body_hex"]))
    assert frame(int(vector["type"]), body) == wire
    assert list(FrameDecoder().feed(wire)) == [wire]
    assert (kind_of(wire), body_of(wire)) == (vector["type"], body)


@pytest.mark.parametrize("vector", VECTORS["broken"], ids=lambda vector: vector["name"])
def test_the_broken_ones_are_told_apart(vector: dict[str, str]) -> None:
    with pytest.raises(BrokenFraming) as raised:
        list(FrameDecoder().feed(bytes.fromhex(vector["wire_hex"])))
    assert raised.value.code == vector["code"]
    assert VECTORS["max_client_length"] == MAX_LENGTH


@settings(deadline=None)
@given(frames, st.data())
def test_cuts_do_not_matter(sent: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(sent)
    cuts = data.draw(st.sets(st.integers(0, len(whole)), max_size=8))
    splitter = FrameDecoder()
    found: list[bytes] = []
    for begin, end in pairwise([0, *sorted(cuts), len(whole)]):
        found += splitter.feed(whole[begin:end])
    assert found == sent
    assert not splitter.waits


@settings(deadline=None, max_examples=cases(100, 300))
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_are_frames_or_broken(blocks: list[bytes]) -> None:
    """What is cut off is the beginning of what came; nothing is lost or made up."""
    splitter, found, came = FrameDecoder(), b"", b""
    try:
        for block in blocks:
            came += block
            for whole in splitter.feed(block):
                assert whole == packed(kind_of(whole), body_of(whole))
                found += whole
    except BrokenFraming:
        length = int.from_bytes(came[len(found) :][:4])
        assert length == 0 or length > MAX_LENGTH
    assert came.startswith(found)


def test_the_longest_frame_in_small_blocks() -> None:
    """Blocks are gathered, not copied again for each."""
    whole = packed(0, b"x" * (MAX_LENGTH - 1))
    splitter = FrameDecoder()
    found: list[bytes] = []
    for begin in range(0, len(whole), 1000):
        found += splitter.feed(whole[begin : begin + 1000])
    assert found == [whole]
