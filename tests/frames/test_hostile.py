"""Clients that do not behave: contained, while others are served."""

import contextlib
import resource
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_server.api.document import MAX_BODY_BYTES
from gemma_server.frames import connection, server
from testing.counts import cases
from testing.waiting import wait_until
from tests.frames.conftest import Lane, Open
from tests.frames.peer import ECHO, FAILED, RAW, Peer, packed, request

VALID = (
    packed(ECHO, b"echo"),
    packed(RAW, b"raw"),
    request(id=1, op="generate", prompt="text", stream=True),
    request(id="a", op="cancel"),
    request(id=1, op="score", prompt="text"),
    request(id=2, op="ready"),
)
mutated = st.builds(
    lambda whole, at, byte: whole[: at % len(whole)] + byte + whole[at % len(whole) + 1 :],
    st.sampled_from(VALID),
    st.integers(0, 200),
    st.binary(max_size=2),
)
anything = st.lists(st.sampled_from(VALID) | mutated | st.binary(max_size=60), max_size=8)


@settings(
    max_examples=cases(100, 3000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(anything)
def test_whatever_is_sent(lane: Lane, peer: Peer, sent: list[bytes]) -> None:
    """Each answer is a whole frame, and another connection notices nothing."""
    with lane.connect() as hostile:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            hostile.send(*sent)
            hostile.sock.shutdown(socket.SHUT_WR)
        for kind, told in hostile.answers():
            assert kind in (0, 1, 3, 4, 255)
            if kind == FAILED:
                assert told["status"] < 500, told
    assert peer.echo(b"still") == b"still"


def test_half_a_frame_is_waited_for(lane: Lane) -> None:
    """Byte by byte is no error."""
    with lane.connect() as slow:
        for byte in packed(ECHO, b"slow"):
            slow.send(bytes([byte]))
            time.sleep(0.002)
        assert slow.answer() == (ECHO, b"slow")


def test_half_a_frame_is_not_waited_for_for_ever(lane: Lane, impatient: None, peer: Peer) -> None:
    with lane.connect() as slow:
        slow.send(packed(ECHO, b"one"), packed(ECHO, b"two")[:7])
        assert slow.answer() == (ECHO, b"one")
        assert slow.error()["code"] == "incomplete_frame"
        assert slow.answer() is None
    assert peer.echo() == b"?"  # idle for as long, between frames


def test_the_end_amid_a_frame_is_told(lane: Lane) -> None:
    with lane.connect() as leaving:
        leaving.send(packed(ECHO, b"half")[:6])
        leaving.sock.shutdown(socket.SHUT_WR)
        assert leaving.error()["code"] == "incomplete_frame"
        assert leaving.answer() is None


def test_who_does_not_read_is_not_read_from(lane: Lane, peer: Peer) -> None:
    """What is kept for it stays small, and it gets all of it in the end."""
    whole = packed(ECHO, b"x" * 100_000)
    with lane.connect() as slow:
        slow.sock.settimeout(0.5)
        sent = send_until_it_is_full(slow, whole)
        [held] = [each for each in lane.server._sessions if each.unsent]
        assert held._unsent_bytes < connection.PAUSE_BYTES + 2 * len(whole)
        assert not lane.server._attention  # nor is it noted again and again
        assert peer.echo() == b"?"
        slow.sock.settimeout(10)
        for _ in range(sent // len(whole)):
            assert slow.answer() == (ECHO, b"x" * 100_000)


def test_small_frames_are_not_kept_by_the_million(lane: Lane) -> None:
    """Each takes more memory than its bytes."""
    with lane.connect() as slow:
        slow.sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            slow.send(packed(ECHO, b"") * 2_000_000)
        [held] = [each for each in lane.server._sessions if each.unsent]
        assert len(held._unsent) < 2 * connection.PAUSE_BYTES / connection._PIECE_BYTES


def test_who_reads_slowly_is_waited_for(lane: Lane, impatient: None) -> None:
    """The system tells of a reader only when it has taken most of what there is."""
    whole = packed(ECHO, b"x" * 500_000)
    with lane.connect() as slow:
        slow.send(whole)
        for _ in range(15):
            time.sleep(0.05)
            assert slow.sock.recv(16_384)
        assert any(each.unsent for each in lane.server._sessions)


def test_half_a_frame_that_we_do_not_read_is_no_fault(lane: Lane, impatient: None) -> None:
    """The client has sent it all; it is we who wait for it to read."""
    long, second = packed(ECHO, b"x" * MAX_BODY_BYTES), packed(ECHO, b"y" * 1000)
    with lane.connect() as slow:
        slow.send(long, long, second[:100])
        time.sleep(0.1)
        slow.send(second[100:])
        rest, began = len(long) * 2 + len(second), time.monotonic()
        while rest:
            if time.monotonic() - began < 0.8:
                time.sleep(0.05)
            data = slow.sock.recv(16_384)
            assert data, "closed"
            rest -= len(data)
        assert slow.echo() == b"?"


def test_who_never_reads_is_given_up(lane: Lane, impatient: None) -> None:
    whole = packed(ECHO, b"x" * MAX_BODY_BYTES)
    with lane.connect() as deaf, pytest.raises((BrokenPipeError, ConnectionResetError)):
        deaf.send(*[whole] * 100)


def test_answers_that_nobody_reads_are_limited(
    open_lane: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests are cancelled, and nobody else's."""
    monkeypatch.setattr(connection, "MAX_UNSENT_BYTES", 300_000)
    lane = open_lane(slots=2, step_s=0.001, context_length=2048)
    with lane.connect() as deaf, lane.connect() as other:
        deaf.ask(id="long", op="generate", prompt="z" * 2000)
        with contextlib.suppress(BrokenPipeError):
            for name in range(20):
                deaf.ask(id=name, op="tokenize", prompt="z" * 20_000)
        wait_until(lambda: lane.server.connections == 1)
        wait_until(lambda: lane.app.engine.stats().active == 0)
        other.ask(id=1, op="generate", prompt="ab", sampling_steps=2)
        assert other.whole(1)[1]["response"] == "ab"


def test_one_long_answer_is_no_backlog(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much longer than what may wait, for one that reads."""
    monkeypatch.setattr(connection, "MAX_UNSENT_BYTES", 1000)
    with lane.connect() as peer:
        peer.ask(id=1, op="tokenize", prompt="z" * 500_000)
        time.sleep(0.3)
        assert peer.whole(1)[1]["count"] == 500_001


def test_a_thousand_idle_connections(lane: Lane) -> None:
    """They cost no thread, and nobody waits for them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(1000, (soft - 200) // 2)  # both ends are in this process
    assert count > 300
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(lane.connect()) for _ in range(count)]
        wait_until(lambda: lane.server.connections >= count)
        assert all(peer.echo() == b"?" for peer in idle[:: count // 50])
        for peer in idle[::2]:
            peer.send(packed(ECHO, b"all at once"))
        for peer in idle[::2]:
            assert peer.answer() == (ECHO, b"all at once")
    wait_until(lambda: lane.server.connections <= 1)


def test_too_many_connections_are_turned_away(
    open_lane: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    lane = open_lane()
    with lane.connect() as first, lane.connect() as second:
        assert first.echo() + second.echo() == b"??"
        with lane.connect() as third:
            error = third.error()
            assert (error["code"], error["status"]) == ("too_many_connections", 429)
            assert third.answer() is None
        assert first.echo() == b"?"
    wait_until(lambda: lane.server.connections == 0)
    with lane.connect() as again:
        assert again.echo() == b"?"


def test_without_file_descriptors_those_there_are_go_on(
    open_lane: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that cannot be taken waits until one can."""
    monkeypatch.setattr(server, "_LOOK_S", 0.05)
    lane = open_lane()

    class Exhausted:
        def __init__(self, real: socket.socket) -> None:
            self.real, self.left = real, 3

        def fileno(self) -> int:
            return self.real.fileno()

        def close(self) -> None:
            self.real.close()

        def accept(self) -> object:
            self.left -= 1
            if self.left >= 0:
                raise OSError(24, "Too many open files")
            return self.real.accept()

    with lane.connect() as first:
        assert first.echo() == b"?"
        own = lane.server
        exhausted = Exhausted(own._listener)
        own._selector.unregister(own._listener)
        own._listener = exhausted  # type: ignore[assignment]
        own._selector.register(exhausted, 1)
        with lane.connect() as second:
            assert first.echo() == b"?"
            assert second.echo() == b"?"
        assert exhausted.left < 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short."""
    monkeypatch.setattr(connection, "STALLED_S", 0.3)
    monkeypatch.setattr(server, "_LOOK_S", 0.05)


def send_until_it_is_full(slow: Peer, whole: bytes) -> int:
    """How many bytes of frames one after another went into the connection."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 100 * len(whole):
            sent += slow.sock.send((whole * 2)[sent % len(whole) :][:100_000])
    assert sent < 100 * len(whole)
    return sent
