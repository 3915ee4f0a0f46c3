"""Starts an engine with the limits in the settings, on any runner."""

from collections.abc import Callable

from gemma_server.engine.draft_model import DraftModel
from gemma_server.engine.engine import Engine
from gemma_server.engine.plan import Runner
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.engine.watchdog import StepTimes
from gemma_server.settings import Settings

OnDeath = Callable[[BaseException], None]
Wrap = Callable[[Runner], Runner]  # puts something between an engine and its runner


def limits_of(
    settings: Settings,
    context_length: int,
    chunks: tuple[int, ...],
    *,
    steps: int = 1,
    kept: int = 0,
    rows: tuple[int, ...] = (),
    gap_s: float | None = None,
) -> Limits:
    """What the engine may accept, and how it divides the device's time."""
    return Limits(
        slots=settings.slots,
        context_length=context_length,
        chunks=chunks,
        max_queue=settings.max_queue,
        max_queue_tokens=settings.max_queue_tokens,
        steps=steps,
        kept=kept,
        rows=rows,
        max_draft=settings.max_draft,
        degrade_at=settings.degrade_at,
        degrade_to=settings.degrade_to,
        gap_s=gap_s,
    )


def start_engine(
    runner: Runner,
    limits: Limits,
    on_death: OnDeath,
    step_times: StepTimes,
    *,
    max_in_flight: int = 1,
    draft_model: DraftModel | None = None,
) -> Engine:
    """Start an engine on this runner."""
    engine = Engine(
        runner,
        Scheduler(limits),
        on_death,
        max_in_flight=max_in_flight,
        step_times=step_times,
        draft_model=draft_model,
    )
    engine.start()
    return engine
