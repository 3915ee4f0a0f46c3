"""Visits to the engine's thread: what an echo through it is made of."""

import threading
import time

import pytest

from gemma_server.engine.fake import FakeRunner
from gemma_server.errors import GenerationFailed, NotReady
from testing.waiting import wait_until
from tests.engine.test_engine import make_engine, make_request, read_all


class Device(FakeRunner):
    """Counts its visitors; the next one may wait at the door, or kill it."""

    def __init__(self, step_s: float = 0.0) -> None:
        super().__init__(4, step_s=step_s)
        self.touched = 0
        self.door = threading.Event()
        self.door.set()
        self.dies = False

    def touch(self) -> None:
        self.door.wait(5)
        if self.dies:
            raise RuntimeError("touched to death")
        self.touched += 1


def test_only_who_wants_to_gets_to_the_device() -> None:
    device = Device()
    engine = make_engine(device)
    for wants in (False, True, True, False):
        engine.probe(device=wants)
    assert device.touched == 2
    engine.stop()


def test_a_busy_engine_is_visited_between_two_steps() -> None:
    engine = make_engine(Device(step_s=0.02))
    [handle] = engine.submit([make_request("a" * 100)])
    began = time.monotonic()
    engine.probe(device=True)
    assert time.monotonic() - began < 1  # the answer takes 2 s
    assert engine.stats().active == 1
    engine.cancel(handle)
    engine.stop()


def test_many_visitors_and_requests_all_come_through() -> None:
    engine = make_engine(Device())

    def probe() -> None:
        for _ in range(50):
            engine.probe(device=True)

    visitors = [threading.Thread(target=probe) for _ in range(8)]
    for visitor in visitors:
        visitor.start()
    for handle in engine.submit([make_request("b" * 50) for _ in range(8)]):
        assert len(read_all(handle)[0]) == 50
    for visitor in visitors:
        visitor.join(10)
        assert not visitor.is_alive()
    engine.stop()


def test_a_device_that_hangs_with_a_visitor_is_seen_to() -> None:
    device = Device()
    device.door.clear()
    engine = make_engine(device)
    visitor = threading.Thread(target=engine.probe, kwargs={"device": True})
    visitor.start()
    wait_until(lambda: engine.step_age_s() > 0.05)
    device.door.set()
    visitor.join(5)
    wait_until(lambda: engine.step_age_s() == 0)
    engine.stop()


def test_a_device_that_fails_a_visitor_fails_everybody() -> None:
    deaths: list[BaseException] = []
    device = Device()
    device.dies = True
    engine = make_engine(device, deaths)
    with pytest.raises(GenerationFailed, match="the engine died"):
        engine.probe(device=True)
    with pytest.raises(GenerationFailed):
        engine.probe(device=False)
    assert [str(death) for death in deaths] == ["touched to death"]


def test_an_engine_that_stops_turns_its_visitors_away() -> None:
    device = Device()
    device.door.clear()
    engine = make_engine(device)
    refused: list[NotReady] = []

    def probe() -> None:
        try:
            engine.probe(device=True)
        except NotReady as error:
            refused.append(error)

    visitors = [threading.Thread(target=probe) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    engine.stop(timeout_s=0)
    device.door.set()
    for visitor in visitors:
        visitor.join(5)
    assert len(refused) == 3
