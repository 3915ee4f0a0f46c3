"""Loads a model for a command; the command ends if that fails."""

import threading
import traceback

from gemma_server.cli import exits
from gemma_server.errors import ModelLoadError
from gemma_server.server.progress import report_progress
from gemma_server.serving.engines import Wrap
from gemma_server.serving.loader import load_model
from gemma_server.serving.model import GenerativeModel
from gemma_server.serving.version import ServableVersion, State
from gemma_server.settings import Settings


def load(settings: Settings, wrap: Wrap = lambda runner: runner) -> GenerativeModel:
    """Load a model in this thread while another shows the progress."""
    version = ServableVersion("gemma")
    reporter = threading.Thread(target=report_progress, args=(version,), daemon=True)
    reporter.start()
    try:
        try:
            loaded = load_model(settings, version, traceback.print_exception, wrap)
        finally:
            version.state = State.END  # there is nothing more to report
            reporter.join()
    except ModelLoadError as error:
        exits.fail(f"cannot load the model: {error}", exits.LOAD)
    except Exception as error:
        traceback.print_exc()
        exits.fail(f"cannot load the model: {type(error).__name__}: {error}", exits.LOAD)
    if not isinstance(loaded, GenerativeModel):
        exits.fail(f"{loaded.name} makes embeddings, it does not generate", exits.USAGE)
    return loaded
