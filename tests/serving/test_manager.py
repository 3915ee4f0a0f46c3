"""A model's life on a fake loader and a fake clock: TensorFlow Serving's cases, and leases."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_server.errors import GenerationFailed, ModelNotFound, NotReady
from gemma_server.serving import manager
from gemma_server.serving.manager import RETRIES, RETRY_S
from gemma_server.serving.policy import resource_preserving
from gemma_server.serving.source import Wanted, WantedModel
from gemma_server.serving.version import State
from testing.counts import cases
from testing.life import FakeModel, Life


def test_a_version_is_loaded_and_replaced_by_the_next() -> None:
    life = Life()
    with pytest.raises(NotReady, match="loading"):
        life.asked()
    life.want(1)
    life.settle()
    assert life.asked() == 1
    life.want(2)
    life.settle()
    assert (life.asked(), life.available) == (2, [2])
    assert life.states == [
        (1, State.LOADING),
        (1, State.AVAILABLE),
        (2, State.LOADING),
        (2, State.AVAILABLE),
        (1, State.UNLOADING),
        (1, State.END),
    ]
    assert life.loaded[1].worker.stopped


def test_the_old_version_answers_while_the_new_one_loads() -> None:
    life = Life()
    life.want(1)
    life.settle()
    life.want(2)
    life.begin()  # its load does not end yet
    assert (life.state(2), life.asked()) == (State.LOADING, 1)
    life.manager.step()
    assert len(life.pending) == 1  # one at a time
    life.settle()
    assert life.asked() == 2


def test_memory_for_one_version_alone() -> None:
    life = Life(policy=resource_preserving)
    life.want(1)
    life.settle()
    life.want(2)
    life.step()
    assert life.available == []
    with pytest.raises(NotReady):
        life.asked()
    life.settle()
    assert life.available == [2]


def test_back_to_the_smaller_number() -> None:
    life = Life()
    life.want(1)
    life.settle()
    life.want(2)
    life.settle()
    life.want(1)
    life.settle()
    assert (life.available, life.asked()) == ([1], 1)


def test_a_version_that_fails_changes_nothing_and_is_retried_so_often() -> None:
    life = Life()
    life.want(1)
    life.settle()
    life.failing[2] = "it is broken"
    life.want(2)
    for _ in range(200):
        life.step()
        assert life.asked() == 1
    loads = life.states.count((2, State.LOADING))
    assert loads == 1 + RETRIES
    failed = life.models.registry.version("m", 2)
    assert failed is not None
    assert (failed.state, failed.error) == (State.END, "it is broken")
    with pytest.raises(NotReady, match="version 2 has ended: it is broken"):
        life.asked("m@2")
    del life.failing[2]
    life.settle()
    assert life.available == [1]  # these very files have failed
    life.want(2, signature="mended")
    life.settle()
    assert life.available == [2]


def test_a_load_that_is_retried_can_succeed() -> None:
    life = Life()
    life.failing[1] = "the disk was busy"
    life.want(1)
    life.settle()
    assert life.available == []
    life.failing.clear()
    life.step(RETRY_S)
    life.settle()
    assert life.available == [1]


def test_no_longer_wanted_before_it_was_retried() -> None:
    life = Life()
    life.failing[1] = "broken"
    life.want(1)
    life.step()
    life.want()
    life.step(100.0)
    life.settle()
    assert life.states.count((1, State.LOADING)) == 1


def test_no_longer_wanted_while_it_loads() -> None:
    life = Life()
    life.want(1)
    life.begin()
    life.want()
    life.settle()
    assert life.available == []
    assert life.state(1) is State.END


def test_wanted_again_while_it_goes() -> None:
    life = Life()
    life.want(1)
    life.settle()
    life.want()
    life.begin()
    assert life.state(1) is State.UNLOADING
    life.want(1)
    life.begin()
    assert life.states.count((1, State.LOADING)) == 1  # the old one is still there
    life.settle()
    assert life.available == [1]
    assert life.states.count((1, State.LOADING)) == 2


def test_a_source_that_fails_changes_nothing() -> None:
    life = Life()
    life.want(1)
    life.settle()
    life.poll_fails = True
    life.want()
    life.settle()
    assert life.available == [1]
    life.poll_fails = False
    life.settle()
    assert life.available == []


def test_requests_keep_their_version_and_new_ones_get_the_new_one() -> None:
    life = Life()
    life.want(1)
    life.settle()
    with ExitStack() as held:
        old = held.enter_context(life.models.resolve_any(None))
        life.want(2)
        life.step()
        assert (old.version, life.asked()) == (1, 2)
        assert life.models.leases == 1
    assert life.models.leases == 0


def test_a_version_by_its_number() -> None:
    life = Life()
    life.want(1, 3)
    life.settle()
    assert [life.asked(name) for name in (None, "m", "m@1", "m@3", "m:latest")] == [3, 3, 1, 3, 3]
    for unknown in ("m@2", "other", "m@x", "m@", "@1"):
        with pytest.raises(ModelNotFound):
            life.asked(unknown)


def test_an_engine_that_dies_is_reloaded_and_others_go_on() -> None:
    life = Life()
    life.want(1, 2)
    life.settle()
    life.on_death[2](RuntimeError("lost a buffer"))
    assert (life.asked(), life.available) == (1, [1])
    life.step(RETRY_S / 2)
    assert life.available == [1]
    life.step(RETRY_S)
    life.settle()
    assert life.available == [1, 2]
    assert life.deaths == []


def test_a_device_that_hangs_is_everybody_s() -> None:
    life = Life()
    life.want(1)
    life.settle()
    life.on_death[1](GenerationFailed("it has not answered"))
    assert len(life.deaths) == 1


def test_metrics_say_what_became_of_versions() -> None:
    life = Life()
    life.failing[2] = "broken"
    life.want(1, 2)
    for version in (1, 2):
        cast(Any, life.loaded).setdefault(version, None)
    life.settle()
    worker = life.loaded[1].worker
    worker.stats = lambda: SimpleNamespace(
        slots=1, active=0, queued=0, steps=0, tokens_sampled=0, prompt_cache_queries=0,
        prompt_cache_hits=0, prompt_cache_tokens=0,
    )  # fmt: skip
    vars(life.loaded[1])["compilations"] = SimpleNamespace(programs=0)
    text = life.models.metrics.exposition().decode()
    assert 'gemma_model_state{model="m",state="AVAILABLE",version="1"} 1.0' in text
    assert 'gemma_model_state{model="m",state="END",version="2"} 1.0' in text
    assert 'gemma_model_loads_total{model="m",result="available"} 1.0' in text


def test_models_come_and_go_with_what_is_wanted() -> None:
    life = Life()
    life.want(1)
    life.wanted["n"] = WantedModel({7: Wanted(Path("/n/7"))}, labels={"stable": 7})
    life.settle()
    assert (life.asked(), life.asked("n"), life.asked("n:stable")) == (1, 7, 7)
    with life.models.resolve_any("n"):
        del life.wanted["n"]
        life.step()  # its drain is over at once here
        with pytest.raises(NotReady, match="n version 7 has ended"):
            life.asked("n")
    life.settle()
    with pytest.raises(ModelNotFound):
        life.asked("n")
    assert [model.name for model in life.models.registry.served()] == ["m"]


def test_another_model_is_the_first_once_it_takes_requests() -> None:
    life = Life()
    life.want(1)
    life.settle()
    life.wanted["n"], life.first = WantedModel({7: Wanted(Path("/n/7"))}), "n"
    life.failing[7] = "broken"
    life.settle()
    assert life.asked() == 1
    life.failing = {}
    life.step(RETRY_S * 9)
    life.settle()
    assert life.asked() == 7


def test_a_bug_does_not_end_the_manager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    life, steps = Life(), iter([RuntimeError("a bug")])
    step = life.manager.step

    def step_or_raise() -> None:
        if (error := next(steps, None)) is not None:
            raise error
        life.now += 1
        step()
        while life.pending:
            life.pending.pop(0)()
        if life.available:
            life.manager.stop()

    monkeypatch.setattr(manager, "RETRY_S", 0.0)
    monkeypatch.setattr(life.manager, "step", step_or_raise)
    life.want(1)
    life.manager.run()
    assert life.available == [1]
    assert "a bug" in caplog.text


def test_a_label_moves_once_its_version_takes_requests() -> None:
    life = Life()
    life.want(1)
    life.settle()
    versions = {number: Wanted(Path(f"/m/{number}")) for number in (1, 2)}
    life.wanted["m"] = WantedModel(versions, labels={"stable": 1, "next": 2})
    life.settle()
    assert (life.asked("m:stable"), life.asked("m:next")) == (1, 2)
    life.wanted["m"] = WantedModel({**versions, 3: Wanted(Path("/m/3"))}, labels={"stable": 3})
    life.failing[3] = "broken"
    life.settle()
    assert life.asked("m:stable") == 1
    with pytest.raises(ModelNotFound):
        life.asked("m:next")
    life.failing = {}
    life.step(RETRY_S * 9)
    life.settle()
    assert life.asked("m:stable") == 3


def test_a_model_that_waits_for_its_last_request_holds_up_no_other() -> None:
    life = Life()
    life.want(1)
    life.settle()
    life.want()
    life.begin()  # 1 is to be unloaded, which has not come to its end
    assert life.state(1) is State.UNLOADING
    life.want(2)
    life.wanted["n"] = WantedModel({1: Wanted(Path("/n/1"))})
    life.begin()
    assert life.state(2) is State.START  # the memory of 1 is not back
    other = life.models.registry.version("n", 1)
    assert other is not None
    assert other.state is State.LOADING


ACTS = st.sampled_from(["want", "step", "begin", "end", "lease", "release", "fail", "die", "lose"])


@settings(deadline=None, max_examples=cases(60, 1000))
@given(st.lists(st.tuples(ACTS, st.sets(st.integers(1, 4), max_size=2)), max_size=40))
def test_whatever_happens_no_request_loses_its_version(acts: list[tuple[str, set[int]]]) -> None:
    """A lease is of a version that was available, whose engine runs until the lease is given back;
    in the end what is wanted is there."""
    life, held = Life(), list[tuple[FakeModel, ExitStack]]()
    for act, numbers in acts:
        if act == "want":
            life.want(*numbers)
        elif act == "step":
            life.step(1.0 + 50.0 * len(numbers))
        elif act == "begin":
            life.begin()
        elif act == "end" and life.pending and not held:
            life.pending.pop(0)()
        elif act == "lease" and life.available:
            stack = ExitStack()
            model = stack.enter_context(life.models.resolve_any(None))
            assert model.version == max(life.available)
            held.append((cast(FakeModel, model), stack))
        elif act == "release" and held:
            held.pop()[1].close()
        elif act == "fail":
            life.failing = dict.fromkeys(numbers, "broken")
        elif act == "die" and life.available and not held:
            life.on_death[life.available[-1]](RuntimeError("died"))
        elif act == "lose":
            life.poll_fails = bool(numbers)
        assert life.models.leases == len(held)
        assert len({id(each) for each in life.models.registry.versions()}) == len(
            life.models.registry.versions()
        )
    for _, stack in held:
        stack.close()
    life.failing, life.poll_fails = {}, False
    life.want(5)
    for _ in range(20):
        life.step(100.0)
    assert (life.available, life.asked()) == ([5], 5)
    assert life.models.leases == 0
