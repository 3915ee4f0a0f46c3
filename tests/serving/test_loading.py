"""Loading a model of real size, in every format: what docs/models.md promises of its memory."""

import pytest

from benchmarks.loading import FORMATS, ROWS, measure
from testing.counts import is_long

pytestmark = pytest.mark.slow

# For the long run alone: the first is read as "orbax flat" is, and the second is least in danger.
SELDOM = ("orbax stacked", "converted")


def test_loading_peaks_just_above_what_stays() -> None:
    """Streaming is what keeps it there: a whole copy of the embedding would be too much.

    In bfloat16, where the least room is left; `benchmarks.loading` has float32 too.
    """
    formats = {name: write for name, write in FORMATS.items() if is_long() or name not in SELDOM}
    for result in measure(ROWS["gemma-3-270m"], formats, ["bfloat16"]):
        assert result["peak_mb"] <= result["limit_mb"], result
