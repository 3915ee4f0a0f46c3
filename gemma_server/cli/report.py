"""Measured figures: summaries of samples, for a person and for a program."""

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH = 1000  # columns: no line is wrapped


@dataclass(frozen=True)
class Summary:
    """The median of some samples, and how far they spread."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Summary":
        """The summary of at least one sample."""
        return cls(statistics.median(samples), min(samples), max(samples))

    def __str__(self) -> str:
        return f"{self:.1f}"

    def __format__(self, spec: str) -> str:
        """`median [min-max]`, each number formatted as `spec` says."""
        median, least, most = (format(value, spec) for value in (self.median, self.min, self.max))
        return f"{median} [{least}-{most}]"

    def as_json(self) -> dict[str, float]:
        """The three numbers, rounded to what a measurement can tell: four digits."""
        return {name: float(f"{value:.4g}") for name, value in vars(self).items()}


def format_table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells, the header first: the first column to the left, the others to the right."""
    header, *body = rows
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="right" if index else "left", no_wrap=True)
    for row in body:
        table.add_row(*map(Text, row))
    return plain(table)


def format_facts(facts: Mapping[str, str]) -> str:
    """Names and values, one pair a line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, text in facts.items():
        table.add_row(Text(name), Text(text))
    return plain(table)


def plain(table: Table) -> str:
    """A table as text that does not depend on the terminal."""
    console = Console(width=_WIDTH, color_system=None, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
