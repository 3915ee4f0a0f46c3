"""Measured figures: samples summed up, for a person and for a program."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
    rows = list(rows)
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for name, *cells in rows:
        aligned = (cell.rjust(width) for cell, width in zip(cells, others, strict=True))
        lines.append("  ".join([name.ljust(first), *aligned]))
    return "\n".join(lines)
