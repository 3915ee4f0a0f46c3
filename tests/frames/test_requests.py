"""Requests over frames: the exchanges of the specification, side by side, and cancelled."""

import json
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_server.frames import session, worker_pool
from testing.counts import cases
from testing.waiting import wait_until
from tests.frames.conftest import Lane, Open
from tests.frames.peer import (
    ECHO,
    FAILED,
    FINISHED,
    PIECE,
    RAW,
    VECTORS,
    Peer,
    packed,
    request,
)


@pytest.mark.parametrize("vector", VECTORS["exchanges"], ids=lambda vector: vector["name"])
def test_the_exchanges_of_the_specification(vector: dict[str, Any], peer: Peer) -> None:
    peer.send(*(packed(sent["type"], body_of(sent)) for sent in vector["sent"]))
    for expected in vector["answers"]:
        answer = peer.answer()
        assert answer is not None
        kind, told = answer
        assert kind == expected["type"]
        if "json" in expected:
            assert_has(told, expected["json"])
        else:
            assert told == body_of(expected)


@pytest.mark.parametrize("vector", VECTORS["broken"], ids=lambda vector: vector["name"])
def test_broken_framing_is_told_and_ends_the_connection(vector: dict[str, str], peer: Peer) -> None:
    peer.send(packed(ECHO, b"before"), bytes.fromhex(vector["wire_hex"]))
    assert peer.answer() == (ECHO, b"before")
    assert peer.error()["code"] == vector["code"]
    assert peer.answer() is None


def test_answers_are_those_of_http(lane: Lane, peer: Peer) -> None:
    """The same fields, limits and errors, whatever carries them."""
    for fields in (
        {"prompt": "a text", "sampling_steps": 3},
        {"prompt": ["a", "b"], "stop": "b"},
        {"prompt": "x", "sampling_steps": 0},
        {"prompt": "x", "sampling_steps": 5000},
        {"prompt": "x" * 3000},
        {"prompt": ["a", "x" * 3000]},
        {"prompt": ["a"], "stream": True},
        {"prompt": "x", "temperature": "hot"},
        {"prompt": "x", "model": "other"},
        {"prompt": "x", "no_such": 1},
        {"prompt": ""},
        {},
    ):
        there = lane.app.post(json.dumps(fields).encode())
        peer.ask(id=1, op="generate", **fields)
        answer = peer.answer()
        assert answer is not None
        kind, here = answer
        assert kind == (FINISHED if there.status_code == 200 else FAILED)
        assert here.get("status", 200) == there.status_code
        assert comparable(here) == comparable(there.get_json())


def test_streams_interleave(open_lane: Open) -> None:
    """A long answer does not hold a short one up, and each piece has its request's id."""
    with open_lane(slots=4, step_s=0.002).connect() as peer:
        peer.ask(id="long", op="generate", prompt="abcdefgh" * 8, stream=True)
        peer.ask(id="short", op="generate", prompt="xyz", stream=True)
        counts = Counter[str]()
        ended: list[str] = []
        pieces: dict[str, str] = {"long": "", "short": ""}
        while len(ended) < 2:
            answer = peer.answer()
            assert answer is not None
            kind, told = answer
            if kind == FINISHED:
                ended.append(told["id"])
            else:
                assert kind == PIECE
                pieces[told["id"]] += told["response"]
                counts[told["id"]] += 1
        assert ended == ["short", "long"]
        assert pieces == {"long": "abcdefgh" * 8, "short": "xyz"}
        assert counts["long"] > 3


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_is_immediate(open_lane: Open, stream: bool) -> None:
    """At work, and while waiting for a slot; the id may be used again behind the answer."""
    lane = open_lane(slots=1, step_s=0.05)
    engine = lane.app.engine
    with lane.connect() as peer:
        for name in ("first", "second"):
            peer.ask(id=name, op="generate", prompt="z" * 200, stream=stream)
        wait_until(lambda: (engine.stats().active, engine.stats().queued) == (1, 1))
        began = time.monotonic()
        for name in ("second", "first"):
            peer.ask(id=name, op="cancel")
            while (answer := peer.answer()) is not None and answer[0] == PIECE:
                assert answer[1]["id"] == "first"
            assert answer is not None
            assert answer[0] == FAILED
            assert (answer[1]["id"], answer[1]["status"]) == (name, 499)
            assert answer[1]["error"]["code"] == "cancelled"
        assert time.monotonic() - began < 2  # 200 steps take ten seconds
        wait_until(lambda: (engine.stats().active, engine.stats().queued) == (0, 0))
        assert lane.app.metrics()['gemma_frames_total{op="generate",status="499"}'] == 2
        peer.ask(id="first", op="generate", prompt="a", sampling_steps=1)
        assert peer.whole("first")[1]["response"] == "a"


def test_metrics_count_the_answers(open_lane: Open) -> None:
    """By what was asked, as far as the server knows such a thing."""
    lane = open_lane()
    asked: list[dict[str, Any]] = [
        {"op": "generate", "prompt": "hey"},
        {"op": "generate", "prompt": "hey", "stream": True},
        {"op": "generate", "prompt": "hey", "timeout_ms": 0},
        {"op": "tokenize", "prompt": ""},
        {"op": "no such"},
        {"op": ["generate"]},
    ]
    with lane.connect() as peer:
        peer.echo()
        peer.ask(id=1, op="cancel")
        for fields in asked:
            peer.ask(id=1, **fields)
            while (answer := peer.answer()) is not None and answer[0] == PIECE:
                pass
        for whole in (packed(RAW, b"hey"), packed(RAW, b"\xff"), packed(9, b""), request()):
            peer.send(whole)
            peer.answer()
    counted = {
        name.removeprefix("gemma_frames_total"): count
        for name, count in lane.app.metrics().items()
        if name.startswith("gemma_frames")
    }
    assert counted == {
        '{op="generate",status="200"}': 2,
        '{op="generate",status="400"}': 1,
        '{op="tokenize",status="200"}': 1,
        '{op="unknown",status="400"}': 2 + 2,
        '{op="raw",status="200"}': 1,
        '{op="raw",status="400"}': 1,
    }


def test_whatever_is_cancelled_ends_so(peer: Peer) -> None:
    """Also what takes no slot."""
    peer.send(request(id=1, op="tokenize", prompt="z" * 900_000), request(id=1, op="cancel"))
    error = peer.error()
    assert (error["id"], error["code"]) == (1, "cancelled")


def test_what_ends_while_the_server_stops_is_told(open_lane: Open) -> None:
    """Between its last step and its frame an answer is not lost."""
    for delay in range(12):
        lane = open_lane(step_s=0.001)
        with lane.connect() as peer:
            peer.ask(id=1, op="generate", prompt="abcdefgh")
            wait_until(lambda: lane.app.engine.stats().active == 1)  # noqa: B023
            time.sleep(delay / 1000)
            lane.server.stop(5.0)
            assert peer.whole(1)[1]["response"] == "abcdefgh"
            assert peer.answer() is None


def test_closing_the_connection_cancels_what_it_asked_for(open_lane: Open) -> None:
    lane = open_lane(slots=1, step_s=0.02)
    engine = lane.app.engine
    with lane.connect() as peer:
        for name in range(5):
            peer.ask(id=name, op="generate", prompt="z" * 200)
        peer.send(packed(RAW, b"z" * 200), packed(RAW, b"z" * 200))
        wait_until(lambda: (engine.stats().active, engine.stats().queued) == (1, 5))
    wait_until(lambda: (engine.stats().active, engine.stats().queued) == (0, 0))
    wait_until(lambda: lane.server.connections == 0)


def test_raw_frames_are_answered_in_their_order(peer: Peer) -> None:
    """Whatever they cost; echoes pass them."""
    prompts = [b"x" * 100, b"y", b"\xff", b"zz"]
    peer.send(*(packed(RAW, prompt) for prompt in prompts), packed(ECHO, b"!"))
    answers = [peer.answer() for _ in range(5)]
    assert (ECHO, b"!") in answers
    kinds = [answer[0] for answer in answers if answer is not None and answer[0] != ECHO]
    assert kinds == [RAW, RAW, FAILED, RAW]
    assert [answer[1] for answer in answers if answer and answer[0] == RAW] == [
        b"x" * 100,
        b"y",
        b"zz",
    ]


def test_an_id_stands_for_one_request_at_a_time(open_lane: Open) -> None:
    lane = open_lane(slots=1)
    lane.app.runner.open.clear()
    with lane.connect() as peer:
        peer.ask(id=7, op="generate", prompt="a", sampling_steps=1)
        wait_until(lambda: lane.app.engine.stats().active == 1)
        peer.ask(id=7, op="ready")
        error = peer.error()
        assert (error["code"], error["param"], error["id"]) == ("id_in_use", "id", None)
        peer.ask(id="7", op="ready")  # a string is another one
        assert peer.whole("7")[1]["status"] == "ready"
        lane.app.runner.open.set()
        assert peer.whole(7)[1]["response"] == "a"


@pytest.mark.parametrize(
    "name", [None, True, -1, 1.0, 2**53, "", "x" * 129, "\ud800", [1], {"a": 1}], ids=repr
)
def test_what_is_no_id(peer: Peer, name: object) -> None:
    peer.ask(id=name, op="ready")
    error = peer.error()
    assert (error["code"], error["param"], error["id"]) == ("invalid_id", "id", None)
    assert peer.echo() == b"?"


@pytest.mark.parametrize("timeout", [0, -1, 1.5, True, "5", 10**9 + 1], ids=repr)
def test_what_is_no_time_limit(peer: Peer, timeout: object) -> None:
    peer.ask(id=1, op="generate", prompt="a", timeout_ms=timeout)
    error = peer.error()
    assert (error["code"], error["param"], error["id"]) == ("invalid_value", "timeout_ms", 1)


def test_a_model_s_rate_limit_holds_over_frames_too(open_lane: Open) -> None:
    with open_lane(requests_per_minute=3).connect() as peer:
        peer.ask(id=1, op="generate", prompt="a", stream=True)
        peer.whole(1)
        peer.ask(id=2, op="score", prompt="a")
        peer.whole(2)
        peer.send(packed(RAW, b"a"))
        assert peer.answer() == (RAW, b"a")
        peer.ask(id=3, op="generate", prompt="a")
        answer = peer.answer()
        assert answer is not None
        assert (answer[0], answer[1]["status"], answer[1]["retry_after_s"]) == (FAILED, 429, 20)
        error = answer[1]["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limited")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_short_says_so(open_lane: Open, stream: bool) -> None:
    lane = open_lane(slots=1, max_queue=4, degrade_at=0.25, degrade_to=2)
    lane.app.occupy(2)
    with lane.connect() as peer:
        peer.ask(id=1, op="generate", prompt="hello", stream=stream)
        wait_until(lambda: lane.app.engine.stats().queued == 2)
        lane.app.runner.open.set()
        _, last = peer.whole(1)
        assert (last["finish_reason"], last["degraded"]) == ("length", {"sampling_steps": 2})


def test_interactive_requests_overtake_a_batch(open_lane: Open) -> None:
    lane = open_lane(slots=1)
    lane.app.occupy(1)
    with lane.connect() as peer:
        peer.ask(id="b", op="generate", prompt="b", priority="batch")
        wait_until(lambda: lane.app.engine.stats().queued == 1)
        peer.ask(id="i", op="generate", prompt="i")
        wait_until(lambda: lane.app.engine.stats().queued == 2)
        lane.app.runner.open.set()
        assert {answer[0] for answer in (peer.answer(), peer.answer()) if answer} == {FINISHED}
        runner = lane.app.runner
        assert [prompt[-1] - runner.first_byte for prompt in runner.prompts[-2:]] == [*b"ib"]
        for op, field in (("generate", "prompt"), ("score", "prompt"), ("embed", "input")):
            peer.ask(id=1, op=op, priority="urgent", **{field: "a"})
            error = peer.error()
            assert (error["code"], error["param"], error["id"]) == ("invalid_value", "priority", 1)


def test_a_deadline_ends_a_request(open_lane: Open) -> None:
    with open_lane(slots=1, step_s=0.05).connect() as peer:
        peer.ask(id=1, op="generate", prompt="z" * 200, timeout_ms=200)
        error = peer.error()
        assert (error["code"], error["status"], error["id"]) == ("deadline", 504, 1)


def test_refusals_say_when_to_try_again(open_lane: Open) -> None:
    """Loading, then draining: as over HTTP, and echoes go on."""
    lane = open_lane(loading=True)
    with lane.connect() as peer:
        for code in ("loading", "draining"):
            peer.ask(id=1, op="generate", prompt="a")
            answer = peer.answer()
            assert answer is not None
            assert (answer[1]["status"], answer[1]["error"]["code"]) == (503, code)
            assert answer[1]["retry_after_s"] >= 1
            peer.ask(id=1, op="ready")
            assert peer.whole(1)[1]["status"] == code
            assert peer.echo() == b"?"
            lane.app.models.drain()


def test_too_many_are_refused_one_by_one(open_lane: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine's line, the connection's limits, and the threads there are."""
    monkeypatch.setattr(session, "MAX_REQUESTS", 6)
    monkeypatch.setattr(worker_pool, "LEAVING", 0)
    lane = open_lane(slots=1, max_queue=4, threads=6)
    lane.app.runner.open.clear()
    with lane.connect() as peer, lane.connect() as other:
        for name in range(5):
            peer.ask(id=name, op="generate", prompt="a", sampling_steps=1)
        wait_until(lambda: lane.app.engine.stats().queued == 4)
        peer.ask(id="line", op="generate", prompt="a")
        error = peer.error()
        assert (error["id"], error["status"], error["code"]) == ("line", 429, "overloaded")
        other.ask(id="sixth", op="generate", prompt="a")
        assert other.error()["id"] == "sixth"
        other.send(packed(RAW, b"a"))  # the seventh thread waits for the engine, in vain
        assert other.error()["about"] == RAW
        lane.app.runner.open.set()
        ended = [peer.answer() for _ in range(5)]
        assert {answer[1]["id"] for answer in ended if answer} == set(range(5))
        other.send(packed(RAW, b"again"))
        assert other.answer() == (RAW, b"again")


def test_refused_raw_frames_are_told_in_their_turn(
    open_lane: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their order alone says whose an answer is."""
    monkeypatch.setattr(session, "MAX_RAWS", 2)
    monkeypatch.setattr(session, "MAX_REFUSED", 3)
    lane = open_lane(slots=1)
    lane.app.runner.open.clear()
    with lane.connect() as peer, lane.connect() as flooding:
        peer.send(*(packed(RAW, prompt) for prompt in (b"a", b"b", b"c", b"d")), packed(ECHO, b""))
        assert peer.answer() == (ECHO, b"")
        flooding.send(*[packed(RAW, b"x")] * 6)
        assert flooding.error()["code"] == "too_many_raw_frames"
        lane.app.runner.open.set()
        assert [peer.answer(), peer.answer()] == [(RAW, b"a"), (RAW, b"b")]
        for _ in "cd":
            error = peer.error()
            assert (error["code"], error["about"], error["id"]) == ("overloaded", RAW, None)


def test_a_dying_engine_fails_every_request(open_lane: Open) -> None:
    with open_lane(fail_at=3).connect() as peer:
        for name in range(4):
            peer.ask(id=name, op="generate", prompt="abcdef")
        errors = [peer.error() for _ in range(4)]
        assert {error["id"] for error in errors} == set(range(4))
        assert {error["code"] for error in errors} == {"generation_failed"}
        assert peer.echo() == b"?"


acts = st.lists(
    st.tuples(
        st.sampled_from(("generate", "generate", "stream", "score", "tokenize", "cancel", "bad")),
        st.integers(0, 5),
    ),
    max_size=20,
)


@settings(max_examples=cases(30, 300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts)
def test_every_request_ends_exactly_once(busy: Lane, sent: list[tuple[str, int]]) -> None:
    """Whatever is cancelled when; ids are told apart, and nothing comes behind an end."""
    begun, untold = Counter[int](), 0
    with busy.connect() as peer:
        for act, name in sent:
            op = "generate" if act in ("stream", "bad") else act
            fields: dict[str, Any] = {"id": name, "op": op}
            if op != "cancel":
                fields["prompt"] = "some text" if act != "bad" else 5
                begun[name] += 1
            if act == "stream":
                fields["stream"] = True
            peer.ask(**fields)
        ended = Counter[int]()
        while ended.total() + untold < begun.total():
            answer = peer.answer()
            assert answer is not None
            kind, told = answer
            if kind == PIECE:
                assert ended[told["id"]] < begun[told["id"]]
            elif "id" in told:
                ended[told["id"]] += 1
            else:
                assert told["error"]["code"] == "id_in_use"
                untold += 1
        assert all(ended[name] <= count for name, count in begun.items())
        assert peer.echo() == b"?"  # and that is all
    wait_until(lambda: busy.app.engine.stats().active + busy.app.engine.stats().queued == 0)


@pytest.fixture(scope="module")
def busy(open_lane: Open) -> Lane:
    """A lane whose requests take a while and wait for each other."""
    return open_lane(slots=2, step_s=0.001)


def body_of(frame: dict[str, Any]) -> bytes:
    """Of a frame in the vectors."""
    if "json" in frame:
        return json.dumps(frame["json"]).encode()
    return bytes.fromhex(frame["hex"]) if "hex" in frame else frame["text"].encode()


def assert_has(told: Any, expected: Any) -> None:
    """All that is expected, and maybe more fields."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert_has(told[name], value)
    else:
        assert told == expected


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """An answer or an error without what is never the same twice."""
    kept = {name: value for name, value in document.items() if name not in ("id", "timings")}
    if "error" in kept:
        return {name: value for name, value in kept["error"].items() if name != "request_id"}
    return kept
