"""What a version has to answer before it takes requests."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from gemma_server.api.caller import Caller
from gemma_server.api.document import read
from gemma_server.api.native.handlers import prompt
from gemma_server.api.native.schema import PromptBody
from gemma_server.errors import ModelLoadError, RequestError
from gemma_server.serving.model import GenerativeModel, LoadedModel
from gemma_server.serving.models import Models
from gemma_server.serving.source import WARMUP

MOST = 1000  # lines, as TensorFlow Serving has it
WITHIN_S = 300.0  # all of them
_SMOKE = '{"prompt": "Hello", "sampling_steps": 2, "ignore_eos": true}'


def warm_up(loaded: LoadedModel, checkpoint: Path) -> None:
    """Have the model answer the prompts in `warmup.jsonl` beside its checkpoint, or a short one.

    Raises:
        ModelLoadError: the file cannot be read, or a prompt of it is not answered.
    """
    file = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / WARMUP
    if not isinstance(loaded, GenerativeModel):
        if file.exists():
            raise ModelLoadError(f"{file}: prompts are for models that write text; remove it")
        return
    own = Models(loaded.name)
    own.registry.adopt(loaded)
    until = time.monotonic() + WITHIN_S
    for place, line in _lines(file):
        try:
            _answer(line, own, until)
        except RequestError as error:
            raise ModelLoadError(f"{place}: {error}") from None


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Each body, and where it is from."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        yield "its first answer", _SMOKE
        return
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{file}: {error}") from None
    bodies = [(f"{file}, line {number}", each) for number, each in enumerate(lines, 1)]
    bodies = [(place, each) for place, each in bodies if each.strip()]
    if len(bodies) > MOST:
        raise ModelLoadError(f"{file}: {len(bodies)} prompts, and at most {MOST} are run")
    yield from bodies


def _answer(line: str, models: Models, until: float) -> None:
    body = read(PromptBody, line.encode()).model_copy(update={"model": None, "stream": False})
    with ExitStack() as held:
        prompt(body, models, Caller("warm-up", held, deadline=until))
