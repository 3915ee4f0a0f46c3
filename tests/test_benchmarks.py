"""What the benchmarks compute from what they saw, and what they draw; not how fast anything is."""

import json
import random
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decode, hugging_face, load
from benchmarks.hugging_face import VARIANTS
from benchmarks.load import Answer, Rate
from benchmarks.servers import serving
from benchmarks.sides import OURS, THEIRS, both_sides, stream
from testing.server import serve_with_runner

ROOT = Path(__file__).parent.parent
SIDE = both_sides(Path("model.gguf"))[0]


def test_arrivals_come_at_the_rate_on_average_and_the_same_for_each_side() -> None:
    arrivals = load.poisson(5.0, 400, random.Random(1))
    moments = [arrival.at_s for arrival in arrivals]
    assert moments == sorted(moments)
    assert moments[-1] < 400
    assert len(arrivals) == pytest.approx(5 * 400, rel=0.1)
    gaps = [after - before for before, after in pairwise(moments)]
    assert sum(gap < 0.2 for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.05)  # 1 - 1/e
    assert arrivals == load.poisson(5.0, 400, random.Random(1))
    assert len(load.poisson(0.001, 1, random.Random(1))) == 1  # something is always measured


def test_lengths_are_within_their_limits_and_spread_over_them() -> None:
    arrivals = load.mix(2000, random.Random(2))
    lengths = sorted(arrival.prompt_tokens for arrival in arrivals)
    assert lengths[0] in range(16, 18)
    assert lengths[-1] in range(500, 513)
    assert lengths[1000] == pytest.approx((16 * 512) ** 0.5, rel=0.15)
    assert {arrival.tokens for arrival in arrivals} <= set(range(8, 129))
    assert len({arrival.prompt for arrival in arrivals}) == 2000
    for arrival in arrivals[:50]:  # each word and the point are a token, and <bos>
        words = arrival.prompt.replace(".", " .").split()
        assert len(words) + 1 == arrival.prompt_tokens


def test_a_percentile_is_a_sample() -> None:
    samples = [float(n) for n in range(1, 201)]
    random.Random(3).shuffle(samples)
    assert (load.percentile(samples, 50), load.percentile(samples, 99)) == (100, 198)
    assert load.percentile([7.0], 99) == 7
    assert load.percentile([1.0, 2.0, 3.0], 99) == 3


def rate_of_two_rounds() -> Rate:
    rate = Rate(0.5)
    for first in (1.0, 2.0):
        rate.requests.append(2)
        for side, factor in ((OURS, 1.0), (THEIRS, 2.0)):
            answer = Answer(10, factor * first, [0.1 * factor], 4 * factor, ended=4 * factor)
            rate.add(side, [answer, answer])
    return rate


def test_figures_of_a_round_and_the_ratio_within_it(capsys: pytest.CaptureFixture[str]) -> None:
    load.report(2, 60, {OURS: 1.0, THEIRS: 2.0}, {0.5: rate_of_two_rounds()})
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["capacity_per_s"] == {OURS: 1.0, THEIRS: 2.0}
    found = document["rates"]["0.5"]
    assert found["requests"] == [2, 2]
    assert found["rows"]["first_token_p50_s"][OURS] == {"median": 1.5, "min": 1.0, "max": 2.0}
    assert found["rows"]["first_token_p99_s"]["ratio"] == {"median": 0.5, "min": 0.5, "max": 0.5}
    assert found["rows"]["answered_per_s"][OURS]["median"] == 0.5
    assert found["rows"]["tokens_per_s"][THEIRS]["median"] == 2.5


@pytest.mark.slow
def test_a_streamed_answer_is_timed_piece_by_piece() -> None:
    arguments = serve_with_runner("functools.partial(Real, step_s=0.02)")
    with serving(*arguments) as server:
        streamed = stream(SIDE, server, "hello", 5)
    assert len(streamed.moments) == 5
    assert streamed.usage["completion_tokens"] == 5
    assert streamed.moments == sorted(streamed.moments)
    assert streamed.moments[-1] - streamed.moments[0] > 4 * 0.015
    assert streamed.ended >= streamed.moments[-1]


@pytest.mark.slow
def test_an_answer_that_breaks_off_is_no_measurement() -> None:
    arguments = serve_with_runner("functools.partial(Real, fail_at=4)")
    with serving(*arguments) as server, pytest.raises(RuntimeError, match=r"early|stream ended"):
        stream(SIDE, server, "hello", 5)


def test_what_the_library_lacks_is_named_by_the_python_that_was_asked() -> None:
    lacking = hugging_face.missing(sys.executable)
    assert set(lacking) <= set(hugging_face.NEEDS)
    assert "gguf" not in lacking  # this project's own


def decode_document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    sides = {side: {row: [10.0, 20.0, 30.0] for row in decode.ROWS} for side in (OURS, THEIRS)}
    variants = {name: {work.row: [5.0] for work in decode.OF_LIBRARY} for name in VARIANTS}
    decode.report(3, sides | variants)
    document: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return document


def test_the_librarys_ratio_is_ours_to_its(capsys: pytest.CaptureFixture[str]) -> None:
    document = decode_document(capsys)
    assert document["rows"]["one_stream"]["ratio"] == 1.0
    found = document["hugging_face"]["float32, static cache"]["one_stream"]
    assert (found["median"], found["ratio"]) == (5.0, 4.0)


def bench_document() -> dict[str, Any]:
    summary = {"median": 2.0, "min": 1.0, "max": 4.0}
    found = {"step_ms": summary, "tok_s": summary, "of_memory_speed": 0.5}
    return {"benchmark": "bench", "decode": {"1": found, "16": found}}


def plots(*results: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.plot", *map(str, results), "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_every_kind_of_result_is_drawn_and_twice_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load.report(2, 60, {OURS: 1.0, THEIRS: 2.0}, {0.5: rate_of_two_rounds()})
    kinds = {
        "load": capsys.readouterr().out,  # with its tables, as it was printed
        "decode": json.dumps(decode_document(capsys)),
        "bench": json.dumps(bench_document()) + "\n",
    }
    results = []
    for name, text in kinds.items():
        results.append(tmp_path / f"{name}.json")
        results[-1].write_text(text)
    for out in ("one", "two"):
        done = plots(*results, out=tmp_path / out)
        assert done.returncode == 0, done.stderr
    for name in kinds:
        drawn = (tmp_path / "one" / f"{name}.svg").read_text()
        assert drawn == (tmp_path / "two" / f"{name}.svg").read_text()
        assert "<svg" in drawn
    for words in ("first token, s", "gap between tokens, s", f"{THEIRS}, p99"):
        assert words in (tmp_path / "one" / "load.svg").read_text()
    assert "HF bfloat16" in (tmp_path / "one" / "decode.svg").read_text()
    assert "tokens/s in total" in (tmp_path / "one" / "bench.svg").read_text()


@pytest.mark.slow
def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    from benchmarks.plot import read

    result = tmp_path / "quality.json"
    why = f"{result}: its last line is no result of decode, load, bench, hop"
    for text in ("", "no json\n", '{"benchmark": "quality"}\n', "[]"):
        result.write_text(text)
        with pytest.raises(SystemExit, match=f"^{re.escape(why)}$"):
            read(result)
    done = plots(result, out=tmp_path)
    assert (done.returncode, done.stderr.splitlines()) == (1, [why])
