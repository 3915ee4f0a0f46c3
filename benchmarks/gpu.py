"""How fast Gemma 3 runs on a GPU, next to the Hugging Face library and to the memory's own speed.

    python -m benchmarks.gpu [--models NAME ...] [--batches N ...] [--seconds N]

The weights are random, in bfloat16: no speed here depends on their values, and the largest would
take long to load. Each model on each side has a process of its own, smallest model first; what
`--seconds` leaves no time for is dropped, and a line says so.

- decode: each of N rows draws tokens behind 512 others, greedily; ours through the runner, in the
  blocks and so far ahead as the engine does it
- of copy: what a step has to read (all weights once, and of each row's cache what the windows of
  the layers see) over its time, as a share of what a copy reads and writes in the same process
- prefill 512: tokens of one prompt over the time to its first token; ours in chunks of 256
- Hugging Face: `generate` with a static cache where that works, not compiled; a step is the
  difference between answers of many tokens and of one

The last line of standard output is the result as one JSON document.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.servers import positive
from gemma_server.cli.report import format_table
from gemma_server.model.presets import RELEASED, Preset

ROOT = Path(__file__).parents[1]
OURS, THEIRS = "gemma-server", "Hugging Face"
BATCHES = (1, 8, 32, 128)
TINY = Preset(
    name="tiny",
    layers=2,
    width=64,
    heads=2,
    kv_heads=1,
    head_dim=32,
    hidden=128,
    vocab=512,
    context_length=1024,
    query_scale=32**-0.5,
    global_every=2,
    window=64,
    qk_norm=True,
    post_norms=True,
)
MODELS = {
    config.name: config
    for config in (*(row for row in RELEASED if row.name.startswith("gemma-3-")), TINY)
}
DEFAULT_MODELS = ("gemma-3-270m", "gemma-3-1b", "gemma-3-4b", "gemma-3-12b")

Figures = dict[str, Any]  # {"batch", "step_s", ...} or {"prefill_s"}: one line of a side's output


def main() -> None:
    """Run the benchmark; with --side, be one side's process instead."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description="Gemma 3 on a GPU")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=DEFAULT_MODELS)
    parser.add_argument("--batches", nargs="+", type=positive, default=BATCHES)
    parser.add_argument("--seconds", type=positive, default=420, help="default: 420")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="a Python with torch and transformers"
    )
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        from benchmarks.gpu_runner import measure

        for figures in measure(MODELS[arguments.models[0]].config(), arguments.batches):
            print(json.dumps(figures), flush=True)
        return
    pythons = {OURS: sys.executable, THEIRS: arguments.torch_python}
    report(compare(arguments.models, arguments.batches, pythons, arguments.seconds))


def compare(
    models: Sequence[str], batches: Sequence[int], pythons: dict[str, str], seconds: float
) -> list[Figures]:
    """What was measured of every model on every side that there was time for."""
    deadline = time.monotonic() + seconds
    found = []
    for name in models:
        for side, python in list(pythons.items()):
            say(f"{name}, {side}")
            command = side_command(side, python, MODELS[name], batches)
            measured, ending = run_side(command, deadline - time.monotonic())
            found += [{"model": name, "side": side, **figures} for figures in measured]
            if len(measured) < len(batches) + 1:
                print(f"dropped: {name}, {side}, after {len(measured)} measurements: {ending}")
            if not measured and "No module named" in ending:
                del pythons[side]  # nor will it be there for the next model
    return found


def side_command(side: str, python: str, config: Preset, batches: Sequence[int]) -> tuple[str, ...]:
    """What measures one model on one side."""
    if side == OURS:
        what: tuple[str, ...] = ("benchmarks.gpu", "--side", "--models", config.name, "--batches")
    else:
        what = ("benchmarks.gpu_library", json.dumps(asdict(config)))
    return (python, "-m", *what, *map(str, batches))


def run_side(command: Sequence[str], seconds: float) -> tuple[list[Figures], str]:
    """The figures that a side printed in that time, and its last words if there could be more."""
    if seconds <= 0:
        return [], "no time left"
    # Each process is alone on the GPU.
    environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".9"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
            words = err.strip().splitlines() or [f"it ended with {process.returncode}"]
            ending = words[-1][:500]
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            ending = "no time left"
    return list(_figures(out)), ending


def report(found: Sequence[Figures]) -> None:
    """The table for people, then the line for programs."""
    cases: dict[tuple[str, str], dict[str, Figures]] = {}
    for figures in found:
        work = f"decode {figures['batch']}" if "batch" in figures else "prefill 512"
        cases.setdefault((figures["model"], work), {})[figures["side"]] = figures
    table = [["", "work", f"{OURS}, tok/s", "step, ms", "of copy", f"{THEIRS}, tok/s", "ratio"]]
    rows = []
    for (model, work), sides in cases.items():
        ours, theirs = sides.get(OURS, {}), sides.get(THEIRS, {})
        row = {
            "model": model,
            "work": work,
            "tok_s": ours.get("tok_s"),
            "step_ms": 1e3 * ours["step_s"] if "step_s" in ours else None,
            "of_copy": ours.get("of_copy"),
            "theirs_tok_s": theirs.get("tok_s"),
            "theirs_cache": theirs.get("cache"),
            "ratio": ours["tok_s"] / theirs["tok_s"] if ours and theirs else None,
        }
        rows.append({key: _rounded(value) for key, value in row.items()})
        formats = {"tok_s": ",.0f", "step_ms": ".2f", "of_copy": ".0%"}
        formats |= {"theirs_tok_s": ",.0f", "ratio": ".2f"}
        cells = ["-" if row[key] is None else format(row[key], how) for key, how in formats.items()]
        table.append([model, work, *cells])
    print(format_table(table))
    devices = sorted({figures["device"] for figures in found})
    copies = sorted({round(figures["copy_gb_s"], 1) for figures in found if "copy_gb_s" in figures})
    if copies:
        print(f"{', '.join(devices)}; copy: {min(copies):,.0f} to {max(copies):,.0f} GB/s")
    document = {"benchmark": "gpu", "devices": devices, "copy_gb_s": copies, "rows": rows}
    print(json.dumps(document))


def say(what: str) -> None:
    """Tell the person who waits what is being done."""
    print(what, file=sys.stderr, flush=True)


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _figures(output: str) -> Iterator[Figures]:
    for line in output.splitlines():
        if line.startswith("{") and line.endswith("}"):
            yield json.loads(line)


if __name__ == "__main__":
    main()
