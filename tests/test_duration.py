"""Spans of time, in Go's and Ollama's notation."""

import math

import pytest

from gemma_server.duration import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("0", 0),
        ("0s", 0),
        ("-0s", 0),
        (0, 0),
        (90, 90),
        ("90", 90),
        (-1, math.inf),
        ("-1", math.inf),
        ("-1s", math.inf),
        ("-5m", math.inf),
    ],
)
def test_spans(text: str | int, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5 m", "m", "1m-5s", "five", "1d", "١s", "1" * 400, "nan"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a span of time"):
        seconds_of(text)
