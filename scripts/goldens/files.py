"""Where goldens are, and how they are written."""

import json
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).parents[2] / "testing" / "goldens"

Record = dict[str, Any]


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document for people to read."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
