"""The GPU benchmark, as far as a CPU can tell: that it runs, drops and reports as it says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import OURS, THEIRS, TINY, compare, report, run_side

ROOT = Path(__file__).parent.parent


def test_what_a_side_printed_before_it_died_or_ran_out_of_time_counts() -> None:
    printing = "import sys; print('noise'); print('{\"batch\": 1}', flush=True); "
    died = (sys.executable, "-c", printing + "sys.exit('no memory')")
    assert run_side(died, 20) == ([{"batch": 1}], "no memory")
    hangs = (sys.executable, "-c", printing + "import time; time.sleep(60)")
    assert run_side(hangs, 3) == ([{"batch": 1}], "no time left")
    assert run_side(hangs, 0) == ([], "no time left")


def test_without_time_every_model_is_dropped_with_a_line(capsys: Any) -> None:
    pythons = {OURS: sys.executable, THEIRS: sys.executable}
    assert compare(["gemma-3-270m", "gemma-3-1b"], [1], pythons, 0) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("dropped: gemma-3-") for line in lines)


def test_the_report_joins_both_sides_and_ends_with_one_document(capsys: Any) -> None:
    ours = {"model": "m", "side": OURS, "device": "gpu", "copy_gb_s": 100.0}
    theirs = {"model": "m", "side": THEIRS, "device": "gpu", "cache": "static"}
    report(
        [
            ours | {"prefill_s": 0.5, "tok_s": 1024.0},
            ours | {"batch": 8, "step_s": 0.004, "tok_s": 2000.0, "of_copy": 0.6},
            theirs | {"batch": 8, "step_s": 0.016, "tok_s": 500.0},
        ]
    )
    *_, prefill, decode, copy, last = capsys.readouterr().out.splitlines()
    assert prefill.split() == ["m", "prefill", "512", "1,024", "-", "-", "-", "-"]
    assert decode.split() == ["m", "decode", "8", "2,000", "4.00", "60%", "500", "4.00"]
    assert copy == "gpu; copy: 100 to 100 GB/s"
    assert json.loads(last)["rows"][1]["ratio"] == 4


@pytest.mark.slow
def test_our_side_measures_a_tiny_model() -> None:
    from benchmarks.gpu_runner import cache_bytes, measure

    found = list(measure(TINY.config(), [1, 3], blocks=1, copied=1 << 20))
    assert [figures.get("batch") for figures in found] == [None, 1, 3]
    assert all(figures["tok_s"] > 0 for figures in found)
    # Of a global layer and a local one.
    assert cache_bytes(TINY.config(), 500) == (500 + 64) * 2 * 32 * 2


def test_the_script_is_shell() -> None:
    subprocess.run(["sh", "-n", str(ROOT / "benchmarks" / "gpu.sh")], check=True)
