"""The Hugging Face library in a process of its own, asked by the line: a third one to compare with.

    python -m benchmarks.hugging_face GGUF

It loads the GGUF file with transformers, dequantised to each of two types, and uses a thread for
each CPU that this process may use. A line of standard input is a work: the variant, the tokens of
a prompt, which are random, and how many to generate, greedily; its answer is the seconds it took.
There is no server and no tokenizer, which spares it what the other sides pay for HTTP.

Nothing else of this repository is imported here, so that any Python with torch, transformers,
accelerate and gguf runs it.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

NEEDS = ("torch", "transformers", "accelerate", "gguf")
# Named after type and cache: the library's default cache grows, a static one is allocated at once.
VARIANTS = {
    "float32": ("float32", None),
    "float32, static cache": ("float32", "static"),
    "bfloat16": ("bfloat16", None),
    "bfloat16, static cache": ("bfloat16", "static"),
}
ROOT = Path(__file__).parents[1]
_STOP_TIMEOUT_S = 10.0


class Library:
    """The process, which has loaded the file; ask it from one thread."""

    def __init__(self, process: "subprocess.Popen[str]", log: IO[bytes]) -> None:
        self._process, self._log = process, log
        self._answer()  # that it is ready

    def seconds(self, variant: str, prompt_tokens: int, tokens: int) -> float:
        """What it takes to read a prompt and generate.

        Raises:
            RuntimeError: it died; the text has its last words.
        """
        assert self._process.stdin is not None
        work = {"variant": variant, "prompt_tokens": prompt_tokens, "tokens": tokens}
        print(json.dumps(work), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return float(line)
        self._log.seek(0)
        last_words = self._log.read()[-2000:].decode(errors="replace")
        raise RuntimeError(f"the Hugging Face library failed:\n{last_words}")


def missing(python: str) -> list[str]:
    """What this Python lacks to run the library."""
    command = [python, "-m", "benchmarks.hugging_face", "--missing"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.split()


@contextmanager
def library(python: str, model: Path) -> Iterator[Library]:
    """The library in a process, for a `with` block."""
    command = [python, "-m", "benchmarks.hugging_face", str(model)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=log, text=True
        ) as process,
    ):
        try:
            yield Library(process, log)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    """Load, then answer each line of standard input."""
    parser = argparse.ArgumentParser(prog="benchmarks.hugging_face", description="by the line")
    parser.add_argument("model", metavar="GGUF", type=Path, nargs="?")
    parser.add_argument("--missing", action="store_true", help="name what is not installed")
    arguments = parser.parse_args()
    if arguments.missing:
        print(*(name for name in NEEDS if importlib.util.find_spec(name) is None))
        return
    began = time.perf_counter()
    models = load(arguments.model)
    print(time.perf_counter() - began, flush=True)
    for line in sys.stdin:
        work = json.loads(line)
        dtype, cache = VARIANTS[work["variant"]]
        print(generate(models[dtype], cache, work["prompt_tokens"], work["tokens"]), flush=True)


def load(path: Path) -> dict[str, Any]:
    """The model in each type."""
    import torch
    import transformers

    torch.set_grad_enabled(False)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return {
        dtype: transformers.AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=getattr(torch, dtype),
            quantization_config=transformers.GgufConfig(dequantize=True),
        ).eval()
        for dtype in dict.fromkeys(dtype for dtype, _ in VARIANTS.values())
    }


def generate(model: Any, cache: str | None, prompt_tokens: int, tokens: int) -> float:
    """Seconds for a random prompt and exactly so many tokens behind it."""
    import torch

    ids = torch.randint(model.config.vocab_size, (1, prompt_tokens))
    began = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        cache_implementation=cache,
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
