"""Loading a model of real size, in every format: what docs/models.md promises of its memory."""

import pytest

from benchmarks.loading import FORMATS, ROWS, measure

pytestmark = pytest.mark.slow


def test_loading_peaks_just_above_what_stays() -> None:
    """Streaming is what keeps it there: a whole copy of the embedding would be too much."""
    results = measure(ROWS["gemma-3-270m"], ["float32", "bfloat16"])
    assert {result["format"] for result in results} == set(FORMATS)
    for result in results:
        assert result["peak_mb"] <= result["limit_mb"], result
