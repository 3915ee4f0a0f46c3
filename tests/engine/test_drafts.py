"""What is foreseen, and how much of it is tried."""

import pytest

from gemma_server.engine.draft import Foreseen, Lookup, allot

COUNTS = (1, 4, 8)
STEP_S = {1: 0.0148, 4: 0.0188, 8: 0.0351}  # of the 270M on two cores


def ids(draft: list[Foreseen]) -> list[int]:
    return [each.id for each in draft]


def test_a_text_goes_on_as_it_did_before() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 9, 9, 2, 3, 4], 8)
    assert ids(lookup.propose(3)) == [5, 6, 9]
    lookup.push(5)
    assert ids(lookup.propose(2)) == [6, 9]
    lookup.push(7)
    assert lookup.propose(3) == []


def test_the_longest_match_counts_then_the_latest() -> None:
    assert ids(Lookup([8, 1, 2, 3, 5, 0, 1, 2, 3, 6, 8, 1, 2, 3], 8).propose(1)) == [5]
    assert ids(Lookup([0, 1, 2, 3, 5, 0, 1, 2, 3, 6, 9, 1, 2, 3], 8).propose(1)) == [6]


def test_what_repeats_itself_goes_on_for_as_long_as_wanted() -> None:
    assert ids(Lookup([1, 2, 3, 1, 2, 3], 8).propose(7)) == [1, 2, 3, 1, 2, 3, 1]
    assert ids(Lookup([5, 5, 5, 5], 8).propose(3)) == [5, 5, 5]


@pytest.mark.parametrize("length", range(5))
def test_a_short_text_has_nothing_to_say(length: int) -> None:
    assert Lookup(list(range(length)), 8).propose(3) == []


def test_what_was_wrong_is_believed_less_and_in_time_again() -> None:
    lookup = Lookup([1, 2, 3, 4, 1, 2, 3], 8)
    first = lookup.propose(1)[0].chance
    assert lookup.chance is not None
    for _ in range(5):
        lookup.chance.learn(0, 3)
    assert lookup.propose(1)[0].chance < first / 2
    for _ in range(200):
        lookup.propose(1)
        lookup.chance.learn(0, 0)
    assert lookup.propose(1)[0].chance == pytest.approx(first, abs=0.05)
    for _ in range(5):
        lookup.chance.learn(3, 3)
    assert lookup.propose(1)[0].chance > 0.9


def sure(count: int, chance: float = 0.95) -> list[Foreseen]:
    return [Foreseen(7, chance)] * count


@pytest.mark.parametrize(
    ("drafts", "tried"),
    [
        ([sure(7, 0.99)], [7]),
        ([sure(7, 0.6)], [3]),  # eight rows would not pay
        ([sure(7, 0.1)], [0]),
        ([[]], [0]),
        ([sure(7), []], [2, 0]),  # two rows are computed as four
        ([sure(7, 0.01), []], [2, 0]),
        ([sure(2), sure(2, 0.5)], [2, 0]),
        ([sure(7), sure(7), sure(7), sure(7)], [1, 1, 1, 1]),
        ([sure(7, 0.5)] * 4, [0, 0, 0, 0]),
        ([sure(7)] * 8, [0] * 8),
    ],
)
def test_as_many_are_tried_as_make_tokens_come_sooner(
    drafts: list[list[Foreseen]], tried: list[int]
) -> None:
    assert allot(drafts, COUNTS, STEP_S.get) == tried


def test_what_was_never_measured_is_tried_where_much_speaks_for_it() -> None:
    assert allot([sure(3)], COUNTS, {1: 0.02}.get) == [3]
    assert allot([sure(3, 0.2)], COUNTS, {1: 0.02}.get) == [0]
