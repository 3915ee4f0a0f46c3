"""From settings to a model that answers: the fake here, a Gemma in `gemma.py`."""

import math
from dataclasses import dataclass

from gemma_server.engine.fake import FakeRunner, fake_tokenizer
from gemma_server.engine.watchdog import StepTimes
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.serving.engines import OnDeath, Wrap, limits_of, start_engine
from gemma_server.serving.model import GenerativeModel, LoadedModel, OpenedModel, Stages
from gemma_server.settings import Settings
from gemma_server.text.chat_template import GemmaTemplate
from gemma_server.text.prompted_tools import with_tools

_FAKE_CHUNK = 256  # prompt tokens in one plan


def open_model(settings: Settings, stages: Stages, *, gently: bool = False) -> OpenedModel:
    """Open what the settings name; `stages` is told of each stage. `gently`: others answer
    meanwhile, and go first.

    Raises:
        ModelLoadError: it cannot be opened; the text says what to do.
    """
    if settings.fake:
        return OpenedFake(settings)
    # Imported only here: the fake needs neither weights nor jax.
    from gemma_server.serving.gemma import open_gemma

    return open_gemma(settings, stages, gently=gently)


def load_model(
    settings: Settings, stages: Stages, on_death: OnDeath, wrap: Wrap = lambda runner: runner
) -> LoadedModel:
    """Open what the settings name, and load it.

    Raises:
        ModelLoadError: it cannot be loaded; the text says what to do.
    """
    return open_model(settings, stages).load(on_death, wrap)


@dataclass(frozen=True)
class OpenedFake:
    """The fake, which has no files."""

    settings: Settings
    needs_bytes: int = 0
    device_bytes: float = math.inf

    def load(self, on_death: OnDeath, wrap: Wrap = lambda runner: runner) -> GenerativeModel:
        """The fake."""
        return _fake(self.settings, on_death, wrap)


def _fake(settings: Settings, on_death: OnDeath, wrap: Wrap) -> GenerativeModel:
    runner, tokenizer = wrap(FakeRunner(settings.slots)), fake_tokenizer()
    limits = limits_of(settings, settings.context_length, (_FAKE_CHUNK,))
    return GenerativeModel(
        name=settings.model_name or "fake",
        tokenizer=tokenizer,
        chat=with_tools(GemmaTemplate(tokenizer)),
        engine=start_engine(runner, limits, on_death, StepTimes(given_s=settings.hung_after)),
        device="no device",
        load_s=0.0,
        compilations=CompileCounter(),
        max_steps=settings.max_steps,
    )
