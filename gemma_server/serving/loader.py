"""From settings to a model that answers: the fake here, a Gemma in `gemma.py`."""

from gemma_server.engine.fake import FakeRunner, fake_tokenizer
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.serving.engines import OnDeath, Wrap, limits_of, start_engine
from gemma_server.serving.model import LoadedModel, ServedModel
from gemma_server.settings import Settings

_FAKE_CHUNK = 256  # prompt tokens in one plan


def load_model(
    settings: Settings, model: ServedModel, on_death: OnDeath, wrap: Wrap = lambda runner: runner
) -> None:
    """Load what the settings name and make `model` ready, telling it each stage on the way.

    The engine gets the runner as `wrap` returns it: the benchmark's takes the time of each step.

    Raises:
        ModelLoadError: the model cannot be loaded; the text says what to do.
    """
    if settings.fake:
        model.ready(_fake(settings, on_death, wrap))
        return
    # What reads weights and what compiles is imported only where it is needed.
    from gemma_server.serving.gemma import load_gemma

    model.ready(load_gemma(settings, model, on_death, wrap))


def _fake(settings: Settings, on_death: OnDeath, wrap: Wrap) -> LoadedModel:
    runner = wrap(FakeRunner(settings.slots))
    limits = limits_of(settings, settings.context_length, _FAKE_CHUNK)
    return LoadedModel(
        name=settings.model_name or "fake",
        tokenizer=fake_tokenizer(),
        engine=start_engine(runner, limits, on_death),
        device="no device",
        load_s=0.0,
        compilations=CompileCounter(),
        max_steps=settings.max_steps,
    )
