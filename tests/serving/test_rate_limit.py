"""Token buckets: never more than a minute's worth and its refill, and nothing is lost or made."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_server.errors import ExceedsRateLimit, RateLimited
from gemma_server.server.hosted import VersionLoader
from gemma_server.serving.models import Models
from gemma_server.serving.rate_limit import Charge, ModelRateLimits, RateLimit
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import load_settings

MINUTE_S = 60.0
NEARLY = 1e-3
REQUESTS, TOKENS = 5, 100


class Clock:
    """Seconds, moved by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


EVENTS = st.lists(
    st.tuples(st.just("wait"), st.floats(0.0, 90.0))
    | st.tuples(st.just("take"), st.integers(1, TOKENS))
    | st.tuples(st.sampled_from(["settle", "cancel"]), st.integers(0, 9)),
    max_size=60,
)


@given(EVENTS)
def test_what_passes_in_any_time_is_a_minute_s_worth_and_the_refill(events: list[Any]) -> None:
    clock = Clock()
    limit = RateLimit("key", REQUESTS, TOKENS, clock)
    held: list[tuple[Charge, int]] = []
    moved: list[tuple[float, int, int]] = []  # when, and how many requests and tokens went out
    for kind, value in events:
        if kind == "wait":
            clock.now += value
        elif kind == "take":
            try:
                held.append((Charge([limit], value), value))
                moved.append((clock.now, 1, value))
            except RateLimited:
                pass
        elif held:
            charge, tokens = held.pop(value % len(held))
            used = tokens * value // 9
            if kind == "settle":
                charge.settle(used)
                moved.append((clock.now, 0, used - tokens))
            else:
                charge.cancel()
                moved.append((clock.now, -1, -tokens))
        for bucket in limit.buckets:
            assert -NEARLY <= bucket.level() <= bucket.per_minute
    for first, (began, _, _) in enumerate(moved):
        for last in range(first, len(moved)):
            within = moved[first : last + 1]
            refilled = 1 + (moved[last][0] - began) / MINUTE_S
            assert sum(requests for _, requests, _ in within) <= REQUESTS * refilled + NEARLY
            assert sum(tokens for _, _, tokens in within) <= TOKENS * refilled + NEARLY


@given(st.lists(st.integers(1, TOKENS), max_size=30), st.integers(1, TOKENS))
def test_who_comes_back_when_told_is_let_in_and_not_a_second_before(
    before: list[int], tokens: int
) -> None:
    clock = Clock()
    limits = [RateLimit("key", REQUESTS, TOKENS, clock), RateLimit("model", 0, TOKENS + 7, clock)]
    for each in before:
        if refusal(limits, each) is not None:
            clock.now += 0.7
    refused = refusal(limits, tokens)
    if refused is not None:
        assert 1 <= refused.retry_after_s <= MINUTE_S
        clock.now += refused.retry_after_s - 1
        assert refusal(limits, tokens) is not None
        clock.now += 1
        assert refusal(limits, tokens) is None


def refusal(limits: list[RateLimit], tokens: int) -> RateLimited | None:
    """Why so many tokens are not let through, if they are not."""
    try:
        Charge(limits, tokens)
    except RateLimited as refused:
        return refused
    return None


def test_a_refusal_takes_nothing_from_any_bucket() -> None:
    clock = Clock()
    key, model = RateLimit("key", 2, 0, clock), RateLimit("model", 0, 10, clock)
    Charge([key, model], 8)
    with pytest.raises(RateLimited) as refused:
        Charge([key, model], 3)
    assert (refused.value.holder, refused.value.unit, refused.value.left) == ("model", "tokens", 2)
    assert refused.value.retry_after_s == 6
    with pytest.raises(ExceedsRateLimit) as never:
        Charge([key, model], 11)
    assert (never.value.holder, never.value.tokens, never.value.limit) == ("model", 11, 10)
    Charge([key, model], 2)
    with pytest.raises(RateLimited) as refused:
        Charge([key], 1)
    assert (refused.value.holder, refused.value.unit, refused.value.retry_after_s) == (
        *("key", "requests"),
        30,
    )


def test_what_is_given_back_twice_counts_once() -> None:
    clock = Clock()
    limit = RateLimit("key", REQUESTS, TOKENS, clock)
    charge, _ = Charge([limit], 40), Charge([limit], 40)
    for _ in range(3):
        charge.settle(10)
        charge.cancel()
    requests, tokens = limit.buckets
    assert (requests.level(), tokens.level()) == (REQUESTS - 2, TOKENS - 50)


def test_threads_together_get_no_more_than_there_is() -> None:
    clock = Clock()
    limits = [RateLimit("key", 0, 500, clock), RateLimit("model", 0, 1000, clock)]
    together = threading.Barrier(8)

    def take() -> int:
        together.wait()
        return sum(refusal(limits, 1) is None for _ in range(100))

    with ThreadPoolExecutor(8) as pool:
        assert sum(each.result() for each in [pool.submit(take) for _ in range(8)]) == 500
    assert [bucket.level() for limit in limits for bucket in limit.buckets] == [0, 500]


def test_versions_are_loaded_with_the_limit_of_their_model_and_warm_up_for_nothing(
    tmp_path: Path,
) -> None:
    settings = load_settings(fake=True, requests_per_minute=5)
    loader = VersionLoader(settings, Models("chat").registry)
    own = {"requests_per_minute": 0, "tokens_per_minute": 7}
    versions = [
        ServableVersion("chat", 1, tmp_path),
        ServableVersion("chat", 2, tmp_path),
        ServableVersion("other", 1, tmp_path, own),
    ]
    for version in versions:
        version.opened = loader.open(version)
    loaded = [loader.load(version, lambda error: None) for version in versions]
    for each in loaded:
        each.worker.stop()
    first, second, other = (each.rate_limit for each in loaded)
    assert first is second is not other
    assert (first.per_minute, other.per_minute) == ((5, 0), (0, 7))
    assert [bucket.level() for bucket in (*first.buckets, *other.buckets)] == [5, 7]


def test_the_versions_of_a_model_share_its_limit_until_its_figures_change() -> None:
    limits = ModelRateLimits()
    first = limits.of("chat", 10, 0)
    assert limits.of("chat", 10, 0) is first
    assert limits.of("other", 10, 0) is not first
    assert limits.of("chat", 20, 0) is not first
    assert limits.of("off", 0, 0).buckets == []
