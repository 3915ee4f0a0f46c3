"""Plots of what the benchmarks measured, one SVG file for each result.

    python -m benchmarks.plot RESULT ... [--out benchmarks/plots]

A result is what `gemma-server bench`, `benchmarks.decode`, `.load` or `.hop` printed on standard
output, or its last line alone; NAME.txt becomes NAME.svg. Whiskers reach from the least to the
most of the rounds, points and bars are medians. The same result gives the same file.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.sides import OURS, THEIRS

COLOURS = {OURS: "#1f6feb", THEIRS: "#d9822b"}
OTHERS = "#9aa4af"
PANEL_INCHES = 3.8, 3.0
STYLE: Any = {"svg.hashsalt": "gemma-server", "svg.fonttype": "none", "font.size": 9}

Json = Mapping[str, Any]


def main() -> None:
    """Plot each result that the command line names."""
    parser = argparse.ArgumentParser(prog="benchmarks.plot", description="results as SVG plots")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/plots"), metavar="DIRECTORY")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for result in arguments.results:
        path = arguments.out / f"{result.stem}.svg"
        plot(read(result), path)
        print(path)


def read(path: Path) -> Json:
    """The JSON document that ends the file.

    Raises:
        SystemExit: there is none that can be plotted.
    """
    lines = path.read_text().split("\n")
    try:
        document: Json = json.loads(next(line for line in reversed(lines) if line.strip()))
        if document["benchmark"] in PLOTS:
            return document
    except (StopIteration, ValueError, KeyError, TypeError):
        pass
    raise SystemExit(f"{path}: its last line is no result of {', '.join(PLOTS)}")


def plot(document: Json, path: Path) -> None:
    """Write the plot of a result."""
    panels, draw = PLOTS[document["benchmark"]]
    with matplotlib.rc_context(STYLE):
        width, height = PANEL_INCHES
        figure = Figure(figsize=(panels * width, height), layout="constrained")
        axes = list(figure.subplots(1, panels))
        draw(document, axes)
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_decode(document: Json, axes: Sequence[Axes]) -> None:
    """Bars for each side, and for the Hugging Face library where it was measured."""
    titles = {
        "one_stream": "1 stream, tokens/s",
        "eight_streams": "8 streams, tokens/s",
        "prefill_512": "prefill 512, tokens/s",
    }
    library = document.get("hugging_face", {})
    for ax, (row, title) in zip(axes, titles.items(), strict=True):
        bars = {side: document["rows"][row][side] for side in (OURS, THEIRS)}
        bars |= {f"HF {name}": rows[row] for name, rows in library.items() if row in rows}
        medians = [bar["median"] for bar in bars.values()]
        colours = [COLOURS.get(name, OTHERS) for name in bars]
        ax.barh(list(bars), medians, color=colours, xerr=whiskers(bars.values()), capsize=3)
        ax.invert_yaxis()
        ax.set_title(title)


def draw_load(document: Json, axes: Sequence[Axes]) -> None:
    """Each time over the rate of requests: the median solid, the slowest of a hundred dashed."""
    titles = {
        "first_token": "first token, s",
        "gap": "gap between tokens, s",
        "whole": "whole answer, s",
    }
    rates = sorted(document["rates"].values(), key=lambda rate: float(rate["per_s"]))
    per_s = [rate["per_s"] for rate in rates]
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        for side, colour in COLOURS.items():
            for percent, line in ((50, "-"), (99, "--")):
                found = [rate["rows"][f"{name}_p{percent}_s"][side] for rate in rates]
                label = f"{side}, p{percent}"
                draw_line(ax, per_s, found, color=colour, linestyle=line, label=label)
        ax.set_title(title)
        ax.set_xlabel("requests/s")
        ax.set_ylim(bottom=0)
    axes[0].legend(frameon=False)


def draw_bench(document: Json, axes: Sequence[Axes]) -> None:
    """Speed, step and use of the memory's speed over the number of streams."""
    decode = document["decode"]
    streams = [int(count) for count in decode]
    for ax, name, title in (
        (axes[0], "tok_s", "tokens/s in total"),
        (axes[1], "step_ms", "step, ms"),
    ):
        draw_line(ax, streams, [found[name] for found in decode.values()], color=COLOURS[OURS])
        ax.set_title(title)
    shares = [100 * found["of_memory_speed"] for found in decode.values()]
    axes[2].plot(streams, shares, color=COLOURS[OURS], marker="o", markersize=4)
    axes[2].set_title("of the memory's speed, %")
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks(streams, [str(count) for count in streams])
        ax.set_xlabel("streams")
        ax.set_ylim(bottom=0)


def draw_hop(document: Json, axes: Sequence[Axes]) -> None:
    """Bars for each depth over each transport: means, then what 32 connections get together."""
    panels = (
        ("kept", 1, "mean_us", "a kept connection, mean us"),
        ("new", 1, "mean_us", "a new connection each time, mean us"),
        ("kept", 32, "requests_per_s", "32 kept connections, requests/s"),
    )
    for ax, (connection, connections, figure, title) in zip(axes, panels, strict=True):
        found = {
            f"{way['through']}, {way['transport']}": way[figure]
            for way in document["ways"]
            if (way["connection"], way["connections"]) == (connection, connections)
        }
        if figure == "mean_us":
            found["bare Flask, tcp"] = document["bare_mean_us"]
        medians = [summary["median"] for summary in found.values()]
        colours = [OTHERS if name.startswith("bare") else COLOURS[OURS] for name in found]
        ax.barh(list(found), medians, color=colours, xerr=whiskers(found.values()), capsize=3)
        ax.invert_yaxis()
        ax.set_title(title)


def draw_line(ax: Axes, at: Sequence[float], found: Sequence[Json], **style: Any) -> None:
    """A line through the medians, with whiskers."""
    medians = [summary["median"] for summary in found]
    ax.errorbar(at, medians, yerr=whiskers(found), marker="o", markersize=4, capsize=3, **style)


def whiskers(summaries: Any) -> list[list[float]]:
    """How far the least is below the median, and the most above it."""
    below = [summary["median"] - summary["min"] for summary in summaries]
    above = [summary["max"] - summary["median"] for summary in summaries]
    return [below, above]


# Of each benchmark: how many panels, and what draws them.
PLOTS: dict[str, tuple[int, Callable[[Json, Sequence[Axes]], None]]] = {
    "decode": (3, draw_decode),
    "load": (3, draw_load),
    "bench": (3, draw_bench),
    "hop": (3, draw_hop),
}


if __name__ == "__main__":
    main()
