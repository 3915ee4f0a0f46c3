"""`gemma-server bench`: what is measured, on a device whose speed is known, and its command."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemma_server.cli import bench
from gemma_server.cli.bench import Bench, format_report, full_steps
from gemma_server.cli.main import main
from gemma_server.cli.report import Summary, format_table
from gemma_server.engine.engine import Engine
from gemma_server.engine.fake import FakeRunner, fake_tokenizer
from gemma_server.engine.plan import Chunk, Plan, Row
from gemma_server.engine.request import Request, SamplingParams
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.engine.step_log import Step, StepLog
from gemma_server.errors import GenerationFailed, UsageError
from gemma_server.executor import programs
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.serving.model import GenerativeModel
from gemma_server.text.chat_template import GemmaTemplate
from testing.tiny import tiny_config, tiny_weights, write_gguf

STEP_S = 0.002
WEIGHT_BYTES, TOKEN_BYTES = 1_000_000, 100
GREEDY = SamplingParams()


def fake_bench(*, context_length: int = 256, fail_at: int | None = None) -> Bench:
    log = StepLog()
    runner = log.around(FakeRunner(bench.SLOTS, step_s=STEP_S, fail_at=fail_at))
    limits = Limits(bench.SLOTS, context_length, (64,), max_queue=0, max_queue_tokens=0)
    engine = Engine(runner, Scheduler(limits), lambda error: None)
    engine.start()
    tokenizer = fake_tokenizer()
    loaded = GenerativeModel(
        *("fake", tokenizer, "none", 0.0, CompileCounter(), GemmaTemplate(tokenizer), engine),
        weight_bytes=WEIGHT_BYTES,
        token_bytes=TOKEN_BYTES,
    )
    return Bench(loaded, log)


def test_a_device_of_known_speed_measures_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "read_speed", lambda: 1e9)
    measuring, said = fake_bench(), list[str]()
    measuring.run(2, said.append)
    report = measuring.report()
    assert report["first_token_ms"]["min"] >= 1000 * STEP_S
    assert set(report["prefill_tok_s"]) == {"128"}  # the others do not fit
    assert report["prefill_tok_s"]["128"]["max"] <= 128 / (2 * STEP_S)  # two chunks
    for streams, found in report["decode"].items():
        assert 1000 * STEP_S <= found["step_ms"]["min"] < 10 * 1000 * STEP_S
        assert found["tok_s"]["max"] <= int(streams) / STEP_S
        assert found["tok_s"]["median"] > int(streams) / STEP_S / 10
    assert said[0] == "round 1 of 2: memory and first token"
    assert said[-1] == "round 2 of 2: prefill, tokens: 128"


def test_a_step_reads_all_weights_and_what_each_row_has_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "read_speed", lambda: 1e9)
    measuring = fake_bench()
    measuring.run(1, lambda what: None)
    [first, *_, last] = measuring._decoding[2].step_bytes
    # Of 64 tokens the last is drawn behind 63 + 8 others; one stream is a step ahead of the other,
    # so that it ends a step before.
    assert last == WEIGHT_BYTES + (71 + 70) * TOKEN_BYTES
    assert first < last
    found = measuring.report()["decode"]["2"]
    assert found["of_memory_speed"] == pytest.approx(found["gb_s"], abs=0.01)


def test_only_steps_of_all_streams_and_no_prompt_are_compared() -> None:
    row, chunk = Row(0, 0, 8, GREEDY), Chunk(1, 1, 0, (1,), GREEDY)
    plans = [
        Plan(chunk, ()),
        Plan(chunk, (row, row)),
        Plan(None, (row, row)),
        Plan(None, (row, row)),
        Plan(None, (row,)),
        Plan(None, (row, row)),
    ]
    steps = [Step(plan, float(i), i + 0.5) for i, plan in enumerate(plans)]
    assert list(full_steps(steps, 2)) == [(steps[2], steps[3])]


def test_the_log_has_every_step_in_order() -> None:
    log = StepLog()
    limits = Limits(1, 64, (4,), max_queue=0, max_queue_tokens=0)
    engine = Engine(log.around(FakeRunner(1)), Scheduler(limits), lambda error: None)
    engine.start()
    [handle] = engine.submit([Request((2, 10, 11, 12, 13), 3)])
    bench._wait(handle)
    engine.stop()
    kinds = [(step.plan.prefill is not None, len(step.plan.decode)) for step in log.steps]
    assert kinds == [(True, 0), (True, 0), (False, 1), (False, 1)]
    moments = [moment for step in log.steps for moment in (step.dispatched, step.ended)]
    assert moments == sorted(moments)


def test_a_device_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "read_speed", lambda: 1e9)
    with pytest.raises(GenerationFailed):
        fake_bench(fail_at=20).run(1, lambda what: None)


def test_a_context_too_short_to_decode_is_refused() -> None:
    with pytest.raises(UsageError, match="72"):
        fake_bench(context_length=64)


def test_figures_are_rounded_to_four_digits_of_any_size() -> None:
    assert Summary.of([1234.56, 0.00123456, 7]).as_json() == {
        "median": 7.0,
        "min": 0.001235,
        "max": 1235.0,
    }
    assert format_table([["", "a"], ["row", "10"]]) == "      a\nrow  10"


def _invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.mark.slow
def test_the_command_measures_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "READ_BYTES", 1 << 20)
    # Fewer programs: they take all of the time.
    monkeypatch.setattr(programs, "chunks_for", lambda context_length, policy: (128, 256))
    monkeypatch.setattr(programs, "row_counts", lambda slots: [slots])
    path = write_gguf(tmp_path / "model.gguf", "gemma2", tiny_weights("gemma2"))
    flags = ("--model-checkpoint", path, "--cache-dir", tmp_path / "cache", "--dtype", "float32")
    done = _invoke("--rounds", 1, *flags)
    assert done.exit_code == 0, done.output
    *tables, line = done.stdout.splitlines()
    report = json.loads(line)
    assert "\n".join(tables) == format_report(report)
    config = tiny_config("gemma2")
    assert report["weights_mb"] == round(4 * config.parameters / 1e6, 1)
    assert report["cache_kb_per_token"] == round(4 * config.cached_numbers_per_token / 1e3, 1)
    assert set(report["decode"]) == {"1", "2", "4", "8", "16"}
    assert set(report["prefill_tok_s"]) == {"128"}
    for found in report["decode"].values():
        assert 0 < found["host_ms"]["median"] <= found["step_ms"]["median"]
    assert "round 1 of 1: decode, streams: 16" in done.stderr


def test_the_fake_model_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_FAKE", "1")
    done = _invoke()
    assert done.exit_code == 2
    assert "GEMMA_FAKE" in done.stderr
    assert _invoke("--fake").exit_code == 2  # no such flag


def test_a_model_that_is_not_there_ends_with_3() -> None:
    done = _invoke("--model-checkpoint", "/no/such/model.gguf")
    assert done.exit_code == 3
    assert "/no/such/model.gguf" in done.stderr
