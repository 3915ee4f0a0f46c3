"""When models come into memory and leave it: Ollama's and llama.cpp's cases, and their races."""

import math
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_server.errors import Disconnected, ModelNotFound, ModelStays, NotReady, Overloaded
from gemma_server.serving.manager import RETRY_S
from gemma_server.serving.room import TURN_S
from gemma_server.serving.version import State
from testing.counts import cases
from testing.life import FakeModel, Life


def life_of(**sizes: int) -> Life:
    """Models of these sizes that are loaded when they are asked for, and room for 10."""
    life = Life()
    life.wanted.clear()
    life.models.registry.memory_limit = 10
    for name, size in sizes.items():
        life.host(name, size=size, on_request=True)
    life.first = life.models.registry.default = next(iter(sizes))
    life.settle()
    return life


def test_a_model_is_loaded_when_it_is_asked_for() -> None:
    life = life_of(a=4, b=4)
    assert life.in_memory == set()
    assert life.models.readiness()["status"] == "ready"
    life.models.require_ready()
    assert life.use("b") == 1
    assert life.in_memory == {"b"}
    assert life.use("a") == 1
    assert life.in_memory == {"a", "b"}
    with pytest.raises(ModelNotFound):
        life.use("c")


def test_a_label_is_known_before_its_model_is_loaded_and_after_it_has_left() -> None:
    life = life_of(a=4)
    life.wanted["a"] = replace(life.wanted["a"], labels={"stable": 1})
    life.settle()
    for _ in range(2):
        assert life.use("a:stable") == 1
        life.models.release("a")
        life.settle()
        assert life.in_memory == set()


def test_who_does_not_wait_loads_nothing() -> None:
    life = life_of(a=4)
    with pytest.raises(NotReady):
        life.asked("a")
    assert life.models.look_at("a")[1] is None
    life.settle()
    assert life.in_memory == set()


def test_the_least_recently_used_makes_room() -> None:
    life = life_of(a=4, b=4, c=4)
    for name in ("a", "b", "a"):
        life.use(name)
        life.step()
    assert life.use("c") == 1
    assert life.in_memory == {"a", "c"}
    assert life.use("b") == 1
    assert life.in_memory == {"b", "c"}


def test_a_model_in_use_or_pinned_never_makes_room() -> None:
    life = life_of(a=4, b=4, c=4)
    life.host("a", size=4, pinned=True)
    life.settle()
    with life.held("b") as held:
        with pytest.raises(Disconnected), life.held("c", patience=10):
            pass
        assert life.in_memory == {"a", "b"}
        assert not held.worker.stopped
    assert life.use("c") == 1
    assert life.in_memory == {"a", "c"}


def test_two_models_that_do_not_fit_together_take_turns() -> None:
    life = life_of(a=7, b=7)
    for name in ("a", "b") * 5:
        assert life.use(name) == 1
        assert life.in_memory == {name}


def test_what_is_always_in_use_has_to_let_others_in_after_a_while() -> None:
    """Requests that overlap would keep the other model out for ever; none of them is cut."""
    life = life_of(a=7, b=7)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(life.held("a"))
        life.now += TURN_S
        with pytest.raises(Disconnected), life.held("b", patience=3):
            pass
        waiting = life.models.registry.model("b")
        assert waiting is not None
        waiting.wake(life.now)
        waiting.waiting += 1  # somebody waits for b from now on
        life.now += TURN_S
        life.begin()
        assert life.state(1, "a") is State.UNLOADING
        with pytest.raises(NotReady):
            second.enter_context(life.models.resolve_any("a"))
        first.close()
        life.settle()
        assert life.in_memory == {"b"}


def test_a_model_that_is_larger_than_the_limit_is_refused_with_both_figures() -> None:
    life = life_of(a=11, b=3)
    with pytest.raises(NotReady, match=r"a version 1 has ended: it needs .* see --memory-limit"):
        life.use("a")
    assert life.use("b") == 1


def test_what_was_refused_is_tried_again_when_the_server_is_told_to_look() -> None:
    life = life_of(a=11)
    with pytest.raises(NotReady):
        life.use("a")
    life.models.registry.memory_limit = 12
    life.settle()
    with pytest.raises(NotReady):
        life.use("a")
    life.manager.poll_soon()
    life.settle()
    assert life.use("a") == 1


def test_a_start_loads_what_there_is_room_for() -> None:
    life = Life()
    life.wanted.clear()
    life.models.registry.memory_limit = 10
    for name in ("a", "b", "c"):
        life.host(name, size=4)
    life.first = life.models.registry.default = "a"
    life.settle()
    assert life.in_memory == {"a", "b"}
    assert life.use("c") == 1
    assert life.in_memory == {"b", "c"}


def test_a_new_version_goes_before_or_after_the_old_one_as_memory_allows() -> None:
    for limit, together in ((10, True), (7, False)):
        life = Life()
        life.models.registry.memory_limit = limit
        life.host("m", 1, size=5)
        life.settle()
        life.host("m", 2, size=5)
        life.settle()
        assert life.available == [2]
        moments = [life.states.index(each) for each in ((2, State.LOADING), (1, State.END))]
        assert (moments[0] < moments[1]) == together


def test_a_new_version_that_is_too_big_leaves_the_old_one() -> None:
    life = Life()
    life.models.registry.memory_limit = 10
    life.host("m", 1, size=5)
    life.settle()
    life.host("m", 2, size=11)
    for _ in range(50):
        life.step(RETRY_S)
    assert life.asked() == 1
    assert "see --memory-limit" in (life.models.registry.versions("m")[-1].error)


def test_bytes_are_booked_until_memory_is_back() -> None:
    life = life_of(a=7, b=7)
    life.use("a")
    model = life.models.registry.model("b")
    assert model is not None
    model.wake(life.now)
    model.waiting += 1
    life.begin()  # a goes, which takes a while
    assert life.state(1, "a") is State.UNLOADING
    life.manager.step()
    assert life.state(1, "b") is State.START


def test_an_idle_model_expires_and_comes_back() -> None:
    life = life_of(a=4)
    life.host("a", size=4, on_request=True, keep_alive_s=60)
    life.use("a")
    life.step(59)
    assert life.in_memory == {"a"}
    life.use("a")
    life.step(59)
    assert life.in_memory == {"a"}
    assert life.models.expires_in("a") == pytest.approx(1)
    life.step(2)
    assert life.in_memory == set()
    assert life.use("a") == 1


def test_a_model_does_not_expire_in_use() -> None:
    life = life_of(a=4)
    with life.held("a"):
        life.models.keep("a", 0)
        life.step(1000)
        assert life.in_memory == {"a"}
    life.step()
    assert life.in_memory == set()


def test_the_last_keep_alive_counts_until_the_model_leaves() -> None:
    life = life_of(a=4)
    life.host("a", size=4, on_request=True, keep_alive_s=60)
    life.use("a")
    life.models.keep("a", math.inf)
    life.step(10_000)
    assert life.in_memory == {"a"}
    life.models.release("a")
    life.settle()
    assert life.in_memory == set()
    life.use("a")
    life.step(61)
    assert life.in_memory == set()


def test_what_is_pinned_stays() -> None:
    life = life_of(a=4)
    life.host("b", size=4, pinned=True)
    life.settle()
    life.models.keep("b", 0)
    life.step(1000)
    assert life.in_memory == {"b"}
    with pytest.raises(ModelStays):
        life.models.release("b")


def test_so_many_wait_for_a_model_and_no_more() -> None:
    life = life_of(a=4)
    life.host("a", size=4, on_request=True, max_waiting=0)
    life.settle()
    with pytest.raises(Overloaded, match="0 requests wait for a to load, of 0"):
        life.use("a")


def test_a_load_that_has_not_begun_ends_with_its_last_waiter() -> None:
    life = life_of(a=7, b=7)
    with life.held("a"), pytest.raises(Disconnected), life.held("b", patience=3):
        pass
    life.settle()
    assert life.in_memory == {"a"}


def test_a_load_that_fails_tells_who_waits() -> None:
    life = life_of(a=4)
    life.failing[1] = "it is broken"
    with pytest.raises(NotReady, match="a version 1 has ended: it is broken"):
        life.use("a")
    life.failing.clear()
    life.step(RETRY_S)
    assert life.use("a") == 1


def test_a_version_of_a_model_that_is_not_in_memory() -> None:
    life = life_of(a=4)
    life.host("a", 1, 3, size=4, on_request=True)
    life.settle()
    assert life.use("a@1") == 1
    with pytest.raises(ModelNotFound):
        life.use("a@2")
    assert life.use("a") == 3


def test_a_model_that_is_no_longer_wanted_is_not_found_by_those_who_wait() -> None:
    life = life_of(a=7, b=7)
    del life.wanted["b"]  # which the manager does not know yet
    with life.held("a"), pytest.raises(ModelNotFound):
        life.use("b")


def test_requests_are_shared_out_by_weight_and_stay_with_their_version() -> None:
    life = Life()
    life.host("m", 1, 2, 3, weights={1: 80, 2: 20})
    life.settle()
    model = life.models.registry.model("m")
    assert model is not None

    def chosen(point: int) -> int:
        version = model.chosen((2 * point + 1) * 2**63 // 1000)
        assert version is not None
        return version.number

    before = [chosen(point) for point in range(1000)]
    assert (before.count(1), before.count(2)) == (800, 200)
    life.host("m", 1, 2, 3, weights={1: 70, 2: 30})
    life.settle()
    after = [chosen(point) for point in range(1000)]
    assert after.count(2) == 300
    assert all(new == 2 for old, new in zip(before, after, strict=True) if old == 2)
    life.host("m", 2, 3, weights={1: 70, 2: 30})
    life.settle()
    assert {chosen(point) for point in range(1000)} == {2}  # 1 has gone
    life.host("m", 3, weights={1: 70, 2: 30})
    life.settle()
    assert {chosen(point) for point in range(1000)} == {3}


ACTS = st.sampled_from(
    ["use", "hold", "drop", "time", "release", "keep", "fail", "mend", "squeeze", "want", "die"]
)
NAMES = st.sampled_from("abc")


@settings(deadline=None, max_examples=cases(60, 1000))
@given(st.lists(st.tuples(ACTS, NAMES, st.integers(1, 10)), max_size=40))
def test_whatever_happens_memory_is_enough_and_no_request_is_cut(
    acts: list[tuple[str, str, int]],
) -> None:
    """Booked bytes stay within the limit as long as that does, a model in use stays, and in the end
    each model answers that fits."""
    life, held = life_of(a=3, b=5, c=8), list[tuple[FakeModel, ExitStack]]()
    for act, name, number in acts:
        if act in ("use", "hold"):
            stack = ExitStack()
            try:
                held.append((stack.enter_context(life.held(name, patience=3)), stack))
            except (Disconnected, NotReady, ModelNotFound):
                pass
            else:
                if act == "use":
                    held.pop()[1].close()
        elif act == "drop" and held:
            held.pop(number % len(held))[1].close()
        elif act == "time":
            life.step(number * 10.0)
        elif act == "release" and not held:
            life.models.release(name)
        elif act == "keep":
            life.models.keep(name, number * 5.0)
        elif act in ("fail", "mend"):
            life.failing = {1: "broken"} if act == "fail" else {}
        elif act == "want":
            life.host(name, *range(1, 1 + number % 3), size=number % 8, on_request=True)
        elif act == "die" and not held and 1 in life.on_death:
            life.on_death.pop(1)(RuntimeError("died"))
        life.step()
        booked = sum(each.booked_bytes for each in life.models.registry.versions())
        assert booked <= life.models.registry.memory_limit
        assert not any(model.worker.stopped for model, _ in held)
    for _, stack in held:
        stack.close()
    life.failing = {}
    for name in "abc":
        life.host(name, 9, size=6, on_request=True)
        life.models.release(name)
    life.settle()
    for name in "abcabc":
        assert life.use(name) == 9
        assert life.in_memory == {name}
    assert life.models.leases == 0
    assert all(model.waiting == 0 for model in life.models.registry.served())
