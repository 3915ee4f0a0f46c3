"""Where goldens are, and how they are written."""

import json
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).parents[2] / "testing" / "goldens"

Record = dict[str, Any]


def write_lines(path: Path, documents: list[Record]) -> None:
    """Write a list of JSON documents, each in a line."""
    lines = (json.dumps(document, ensure_ascii=False) for document in documents)
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document for people to read."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
