"""Opens a checkpoint for a command; the command ends if that fails."""

from pathlib import Path

from gemma_server.cli import exits
from gemma_server.errors import ModelLoadError
from gemma_server.serving.checkpoint import Checkpoint, open_checkpoint


def open_or_fail(path: Path, tokenizer: Path | None) -> Checkpoint:
    """The checkpoint at a path; its weights are not read."""
    try:
        return open_checkpoint(path, tokenizer)
    except ModelLoadError as error:
        exits.fail(str(error), exits.LOAD)
